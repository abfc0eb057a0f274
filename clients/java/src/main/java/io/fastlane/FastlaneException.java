package io.fastlane;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.EnumSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.ThreadLocalRandom;
import javax.net.ssl.SSLHandshakeException;

/** A call that failed: refused by the server, or interrupted on the way. */
public final class FastlaneException extends RuntimeException {
    private static final long serialVersionUID = 1L;
    private static final Duration FIRST_PAUSE = Duration.ofMillis(100);
    private static final Duration LONGEST_PAUSE = Duration.ofSeconds(5);
    /** What a server asks for may be any number. */
    private static final long LONGEST_DELAY_SECONDS = 86_400;

    /** The codes of interruptions, unless the server has a reason. */
    private static final Set<Status.Code> PASSING = EnumSet.of(
            Status.Code.UNAVAILABLE, Status.Code.DEADLINE_EXCEEDED, Status.Code.CANCELLED, Status.Code.ABORTED,
            Status.Code.INTERNAL, Status.Code.UNKNOWN);

    private final Status.Code code;
    private final Details details;

    FastlaneException(Status.Code code, String message) {
        this(code, message, null, Details.NONE);
    }

    private FastlaneException(Status.Code code, String message, Throwable cause, Details details) {
        super(message, cause);
        this.code = code;
        this.details = details;
    }

    /** Returns the status code of gRPC. DATA_LOSS: a log is not what the server says it is; found by the client. */
    public Status.Code code() {
        return code;
    }

    /** Returns a name of fastlane.v1.ErrorReason without its prefix. Empty: the error is not the server's. */
    public String reason() {
        return details.info.getReason();
    }

    /** Returns the fields at fault of a request that is not valid: its path, and what is wrong with it. */
    public List<BadRequest.FieldViolation> violations() {
        return details.fields.getFieldViolationsList();
    }

    /** Returns what the error is about, for example the id of the job. */
    public Map<String, String> metadata() {
        return details.info.getMetadataMap();
    }

    /** Returns how long the server asks to wait. Empty: it does not ask. */
    public Optional<Duration> retryAfter() {
        return Optional.ofNullable(details.retry)
                .map(retry -> Math.max(0, Math.min(retry.getRetryDelay().getSeconds(), LONGEST_DELAY_SECONDS)))
                .map(seconds -> Duration.ofSeconds(seconds, details.retry.getRetryDelay().getNanos()));
    }

    /** Returns whether the same call may succeed later. */
    public boolean isPassing() {
        return retryAfter().isPresent() || (reason().isEmpty() && PASSING.contains(code));
    }

    /**
     * Returns whether a stream that ended like this may be called again. Its request is never too large: without a
     * reason, RESOURCE_EXHAUSTED is a proxy's or the connection's.
     */
    boolean isResumable() {
        return isPassing() || (reason().isEmpty() && code == Status.Code.RESOURCE_EXHAUSTED);
    }

    /**
     * Returns the pause before the next try: longer after each failure, on top of what the server asks for. Up to a
     * half is taken off at random, so that many clients do not come back together.
     */
    Duration pause(int failures) {
        long longest = Math.min(FIRST_PAUSE.toNanos() << Math.min(failures, 10), LONGEST_PAUSE.toNanos());
        long pause = longest / 2 + ThreadLocalRandom.current().nextLong(longest / 2);
        return retryAfter().orElse(Duration.ZERO).plusNanos(pause);
    }

    /** Returns the error of a failed call, with what its details say. */
    static FastlaneException of(StatusRuntimeException error) {
        Status status = error.getStatus();
        String message = status.getDescription() == null ? status.getCode().name() : status.getDescription();
        // gRPC says "io exception", and only its cause that the connection was refused.
        Throwable cause = status.getCause();
        // A handshake that failed does not pass by itself. What is wrong with a certificate is in its first cause.
        boolean shaken = !(cause instanceof SSLHandshakeException);
        while (!shaken && cause.getCause() != null) {
            cause = cause.getCause();
        }
        boolean says = cause != null && cause.getMessage() != null && !message.contains(cause.getMessage());
        return new FastlaneException(
                shaken ? status.getCode() : Status.Code.UNAUTHENTICATED,
                says ? message + ": " + cause.getMessage() : message, error, Details.of(error));
    }

    /** The details that the contract names. */
    private record Details(ErrorInfo info, BadRequest fields, RetryInfo retry) {
        static final Details NONE = new Details(ErrorInfo.getDefaultInstance(), BadRequest.getDefaultInstance(), null);

        static Details of(StatusRuntimeException error) {
            Details found = NONE;
            com.google.rpc.Status status = StatusProto.fromThrowable(error);
            try {
                for (Any detail : status == null ? List.<Any>of() : status.getDetailsList()) {
                    found = found.with(detail);
                }
            } catch (InvalidProtocolBufferException unreadable) {
                // The code is enough to go on.
            }
            return found;
        }

        private Details with(Any detail) throws InvalidProtocolBufferException {
            if (detail.is(ErrorInfo.class)) {
                ErrorInfo told = detail.unpack(ErrorInfo.class);
                return told.getDomain().equals("fastlane") ? new Details(told, fields, retry) : this;
            }
            if (detail.is(BadRequest.class)) {
                return new Details(info, detail.unpack(BadRequest.class), retry);
            }
            return detail.is(RetryInfo.class) ? new Details(info, fields, detail.unpack(RetryInfo.class)) : this;
        }
    }
}
