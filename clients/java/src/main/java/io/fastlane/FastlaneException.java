package io.fastlane;

import static io.grpc.Status.Code.CANCELLED;
import static io.grpc.Status.Code.DEADLINE_EXCEEDED;
import static io.grpc.Status.Code.INTERNAL;
import static io.grpc.Status.Code.RESOURCE_EXHAUSTED;
import static io.grpc.Status.Code.UNAUTHENTICATED;
import static io.grpc.Status.Code.UNAVAILABLE;
import static io.grpc.Status.Code.UNKNOWN;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Metadata;
import io.grpc.Status;
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
    private static final long DAY_SECONDS = 86_400;
    /** The codes of interruptions, unless the server has a reason. */
    private static final Set<Status.Code> PASSING =
            EnumSet.of(UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED, INTERNAL, UNKNOWN);

    private final Status.Code code;
    private ErrorInfo info = ErrorInfo.getDefaultInstance();
    private BadRequest fields = BadRequest.getDefaultInstance();
    private RetryInfo retry;

    FastlaneException(Status.Code code, String message) {
        super(message);
        this.code = code;
    }

    /** Returns the status code of gRPC. DATA_LOSS: a log is not what the server says it is; found by the client. */
    public Status.Code code() {
        return code;
    }

    /** Returns a name of fastlane.v1.ErrorReason without its prefix. Empty: the error is not the server's. */
    public String reason() {
        return info.getReason();
    }

    /** Returns the fields at fault of a request that is not valid: its path, and what is wrong with it. */
    public List<BadRequest.FieldViolation> violations() {
        return fields.getFieldViolationsList();
    }

    /** Returns what the error is about, for example the id of the job. */
    public Map<String, String> metadata() {
        return info.getMetadataMap();
    }

    /** Returns how long the server asks to wait. Empty: it does not ask. */
    public Optional<Duration> retryAfter() {
        return Optional.ofNullable(retry).map(RetryInfo::getRetryDelay)
                .map(delay -> Duration.ofSeconds(Math.min(delay.getSeconds(), DAY_SECONDS), delay.getNanos()));
    }

    /** Returns whether the same call may succeed later. */
    public boolean isPassing() {
        return retry != null || (reason().isEmpty() && PASSING.contains(code));
    }

    /**
     * Returns whether a stream that ended like this may be called again. Its request is never too large: without a
     * reason, RESOURCE_EXHAUSTED is a proxy's or the connection's.
     */
    boolean isResumable() {
        return isPassing() || (reason().isEmpty() && code == RESOURCE_EXHAUSTED);
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

    /** Returns the error of a call that waited while its thread was interrupted. The thread stays interrupted. */
    static FastlaneException ofInterrupt() {
        Thread.currentThread().interrupt();
        return new FastlaneException(CANCELLED, "the thread was interrupted");
    }

    /** Returns the error of a failed call. Details that cannot be read are none: the code is enough. */
    static FastlaneException of(Status status, Metadata trailers) {
        Status.Code code = status.getCode();
        String message = status.getDescription() == null ? code.name() : status.getDescription();
        // gRPC says "io exception", and only its cause that the connection was refused.
        for (Throwable cause = status.getCause(); cause != null; cause = cause.getCause()) {
            String words = String.valueOf(cause.getMessage());
            message = message.contains(words) ? message : message + ": " + words;
            // A handshake that failed does not pass by itself.
            code = cause instanceof SSLHandshakeException ? UNAUTHENTICATED : code;
        }
        FastlaneException error = new FastlaneException(code, message);
        error.initCause(status.getCause());
        try {
            for (Any detail : StatusProto.fromStatusAndTrailers(status, trailers).getDetailsList()) {
                error.take(detail);
            }
        } catch (InvalidProtocolBufferException | IllegalArgumentException unreadable) {
            error.addSuppressed(unreadable);
        }
        return error;
    }

    private void take(Any detail) throws InvalidProtocolBufferException {
        if (detail.is(ErrorInfo.class) && detail.unpack(ErrorInfo.class).getDomain().equals("fastlane")) {
            info = detail.unpack(ErrorInfo.class);
        } else if (detail.is(BadRequest.class)) {
            fields = detail.unpack(BadRequest.class);
        } else if (detail.is(RetryInfo.class)) {
            retry = detail.unpack(RetryInfo.class);
        }
    }
}
