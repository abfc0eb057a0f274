package io.fastlane;

import static java.util.concurrent.TimeUnit.NANOSECONDS;
import static java.util.concurrent.TimeUnit.SECONDS;

import io.fastlane.v1.EnqueueJobRequest;
import io.fastlane.v1.ExecutionServiceGrpc;
import io.fastlane.v1.GetJobRequest;
import io.fastlane.v1.Job;
import io.fastlane.v1.JobServiceGrpc;
import io.fastlane.v1.JobServiceGrpc.JobServiceBlockingStub;
import io.fastlane.v1.StopJobRequest;
import io.fastlane.v1.StreamExecutionLogsRequest;
import io.fastlane.v1.StreamJobLogsRequest;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.Deadline;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.MetadataUtils;
import java.time.Duration;
import java.util.UUID;
import java.util.function.Function;
import java.util.function.Supplier;

/** A connection to a server. Its methods may be called from any thread. */
public final class FastlaneClient implements AutoCloseable {
    private static final Metadata.Key<String> AUTHORIZATION =
            Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
    private static final Duration CALL_TIMEOUT = Duration.ofSeconds(30);

    private final ManagedChannel channel;
    private final Duration timeout;

    /** Makes a client of the server at HOST:PORT, without TLS. It connects when the first call is made. */
    public FastlaneClient(String address) {
        this(Grpc.newChannelBuilder(address, InsecureChannelCredentials.create()));
    }

    /** Makes a client with options of gRPC, for example {@code Grpc.newChannelBuilder(address, tlsCredentials)}. */
    public FastlaneClient(ManagedChannelBuilder<?> builder) {
        // Keepalive finds a dead connection while a call is open. This client repeats calls by itself.
        this(builder.keepAliveTime(30, SECONDS).keepAliveTimeout(10, SECONDS).disableRetry().build(), CALL_TIMEOUT);
    }

    private FastlaneClient(ManagedChannel channel, Duration timeout) {
        this.channel = channel;
        this.timeout = timeout;
    }

    /**
     * Shows a token with each call, for a server that requires one: {@code builder.intercept(FastlaneClient.token(…))}.
     * The supplier is asked for each call, and may read a file.
     */
    public static ClientInterceptor token(Supplier<String> token) {
        return new ClientInterceptor() {
            @Override
            public <Q, R> ClientCall<Q, R> interceptCall(MethodDescriptor<Q, R> method, CallOptions options, Channel next) {
                Metadata headers = new Metadata();
                headers.put(AUTHORIZATION, "Bearer " + token.get().strip());
                return MetadataUtils.newAttachHeadersInterceptor(headers).interceptCall(method, options, next);
            }
        };
    }

    /** Returns a client on the same connection, whose calls take this long at most, with their repetitions. */
    public FastlaneClient withTimeout(Duration timeout) {
        return new FastlaneClient(channel, timeout);
    }

    /** Ends all calls and tails, also those of clients on the same connection. */
    @Override
    public void close() {
        channel.shutdownNow();
    }

    /**
     * Stores a job and returns it with its first execution. Without a request_id this makes one, so that a call that
     * was interrupted is repeated and makes no second job.
     */
    public Job enqueue(EnqueueJobRequest request) {
        EnqueueJobRequest sent = request.getRequestId().isEmpty()
                ? request.toBuilder().setRequestId(UUID.randomUUID().toString()).build()
                : request;
        return call(jobs -> jobs.enqueueJob(sent).getJob());
    }

    /** Returns the job as it is now, with its current execution. */
    public Job get(String jobId) {
        GetJobRequest request = GetJobRequest.newBuilder().setJobId(jobId).build();
        return call(jobs -> jobs.getJob(request).getJob());
    }

    /** Ends the job: its signal, the grace period, then a kill. It returns when that has begun. */
    public Job stop(String jobId, String note) {
        StopJobRequest request = StopJobRequest.newBuilder().setJobId(jobId).setNote(note).build();
        return call(jobs -> jobs.stopJob(request).getJob());
    }

    /** Follows the log of an execution to its LogEnd. */
    public Tail tail(StreamExecutionLogsRequest request) {
        boolean whole = request.getCursor().isEmpty()
                && !request.hasTailLines() && !request.hasSinceTime() && request.getStartLine() <= 1;
        LogCheck check = new LogCheck(whole, request.getText(), request.getSourcesValueList());
        Function<String, StreamCall<?, ?>> open = cursor -> new StreamCall<>(
                channel.newCall(ExecutionServiceGrpc.getStreamExecutionLogsMethod(), CallOptions.DEFAULT),
                request.toBuilder().setCursor(cursor).build(), Message::of);
        return new Tail(channel, false, request.getCursor(), request.getHeartbeatInterval(), check, open);
    }

    /** Follows the logs of all executions of a job, one after another, to the JobLogEnd. */
    public Tail tailJob(StreamJobLogsRequest request) {
        boolean whole = request.getCursor().isEmpty() && !request.hasTailLines() && !request.hasSinceTime();
        LogCheck check = new LogCheck(whole, request.getText(), request.getSourcesValueList());
        Function<String, StreamCall<?, ?>> open = cursor -> new StreamCall<>(
                channel.newCall(JobServiceGrpc.getStreamJobLogsMethod(), CallOptions.DEFAULT),
                request.toBuilder().setCursor(cursor).build(), Message::of);
        return new Tail(channel, true, request.getCursor(), request.getHeartbeatInterval(), check, open);
    }

    /** Makes a call that may be sent twice, and repeats it while the error may pass and there is time. */
    private Job call(Function<JobServiceBlockingStub, Job> method) {
        Deadline deadline = Deadline.after(NANOSECONDS.convert(timeout), NANOSECONDS);
        JobServiceBlockingStub jobs = JobServiceGrpc.newBlockingStub(channel).withDeadline(deadline);
        for (int failures = 0; ; failures++) {
            try {
                return method.apply(jobs);
            } catch (StatusRuntimeException error) {
                FastlaneException failure = FastlaneException.of(error);
                Duration pause = failure.pause(failures);
                boolean late = deadline.timeRemaining(NANOSECONDS) < pause.toNanos();
                if (!failure.isPassing() || late || channel.isShutdown()) {
                    throw failure;
                }
                // gRPC's own pauses between connects grow to two minutes.
                channel.resetConnectBackoff();
                sleep(pause);
            }
        }
    }

    private static void sleep(Duration pause) {
        try {
            NANOSECONDS.sleep(pause.toNanos());
        } catch (InterruptedException interrupt) {
            Thread.currentThread().interrupt();
            throw new FastlaneException(Status.Code.CANCELLED, "the thread was interrupted");
        }
    }
}
