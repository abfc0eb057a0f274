package io.fastlane;

import static io.fastlane.v1.ExecutionServiceGrpc.getStreamExecutionLogsMethod;
import static io.fastlane.v1.JobServiceGrpc.getStreamJobLogsMethod;
import static io.grpc.CallOptions.DEFAULT;
import static io.grpc.Status.Code.DEADLINE_EXCEEDED;
import static io.grpc.stub.ClientCalls.blockingV2ServerStreamingCall;
import static java.time.Duration.ofSeconds;
import static java.util.concurrent.TimeUnit.NANOSECONDS;
import static java.util.concurrent.TimeUnit.SECONDS;

import io.fastlane.v1.EnqueueJobRequest;
import io.fastlane.v1.GetJobRequest;
import io.fastlane.v1.Job;
import io.fastlane.v1.JobServiceGrpc;
import io.fastlane.v1.JobServiceGrpc.JobServiceBlockingStub;
import io.fastlane.v1.StopJobRequest;
import io.fastlane.v1.StreamExecutionLogsRequest;
import io.fastlane.v1.StreamJobLogsRequest;
import io.fastlane.v1.StreamJobLogsResponse;
import io.grpc.Deadline;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.Map;
import java.util.UUID;
import java.util.function.Function;

/** A connection to a server. Its methods may be called from any thread. */
public final class FastlaneClient implements AutoCloseable {
    /** A message of an execution's log is one of a job's. */
    private static final MethodDescriptor<StreamExecutionLogsRequest, StreamJobLogsResponse> EXECUTION_LOGS =
            getStreamExecutionLogsMethod().toBuilder(
                    getStreamExecutionLogsMethod().getRequestMarshaller(),
                    getStreamJobLogsMethod().getResponseMarshaller()).build();

    private final ManagedChannel channel;
    private final Duration timeout;

    /** Makes a client of the server at HOST:PORT, without TLS. It connects when the first call is made. */
    public FastlaneClient(String address) {
        this(address, Map.of());
    }

    /** Makes a client with options, for example {@code Map.of(Option.TLS_CA, "ca.pem", Option.TOKEN_FILE, "token")}. */
    public FastlaneClient(String address, Map<Option, String> options) {
        this(new Transport(options).builder(address));
    }

    /** Makes a client with a channel of your own, for other options of gRPC. */
    public FastlaneClient(ManagedChannelBuilder<?> builder) {
        // Keepalive finds a dead connection while a call is open. This client repeats calls by itself.
        this(builder.keepAliveTime(30, SECONDS).keepAliveTimeout(10, SECONDS).disableRetry().build(), ofSeconds(30));
    }

    private FastlaneClient(ManagedChannel channel, Duration timeout) {
        this.channel = channel;
        this.timeout = timeout;
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
        String requestId = request.getRequestId().isEmpty() ? UUID.randomUUID().toString() : request.getRequestId();
        EnqueueJobRequest sent = request.toBuilder().setRequestId(requestId).build();
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
        boolean fromFirstByte = !request.hasTailLines() && !request.hasSinceTime() && request.getStartLine() <= 1;
        boolean whole = fromFirstByte && request.getCursor().isEmpty();
        LogCheck check = new LogCheck(whole, request.getText(), request.getSourcesValueList());
        return new Tail(channel, false, request.getCursor(), request.getHeartbeatInterval(), check,
                cursor -> blockingV2ServerStreamingCall(
                        channel, EXECUTION_LOGS, DEFAULT, request.toBuilder().setCursor(cursor).build()));
    }

    /** Follows the logs of all executions of a job, one after another, to the JobLogEnd. */
    public Tail tailJob(StreamJobLogsRequest request) {
        boolean whole = !request.hasTailLines() && !request.hasSinceTime() && request.getCursor().isEmpty();
        LogCheck check = new LogCheck(whole, request.getText(), request.getSourcesValueList());
        return new Tail(channel, true, request.getCursor(), request.getHeartbeatInterval(), check,
                cursor -> blockingV2ServerStreamingCall(
                        channel, getStreamJobLogsMethod(), DEFAULT, request.toBuilder().setCursor(cursor).build()));
    }

    /** Makes a call that may be sent twice, and repeats it while the error may pass and there is time. */
    private Job call(Function<JobServiceBlockingStub, Job> method) {
        Deadline deadline = Deadline.after(NANOSECONDS.convert(timeout), NANOSECONDS);
        JobServiceBlockingStub jobs = JobServiceGrpc.newBlockingStub(channel).withDeadline(deadline);
        FastlaneException failure = null;
        for (int failures = 0; ; failures++) {
            try {
                return method.apply(jobs);
            } catch (StatusRuntimeException error) {
                FastlaneException last = FastlaneException.of(error.getStatus(), error.getTrailers());
                // The end of the time does not say why: the failure before it does.
                failure = last.code() == DEADLINE_EXCEEDED && failure != null ? failure : last;
            }
            long pauseNanos = failure.pause(failures).toNanos();
            if (!failure.isPassing() || deadline.timeRemaining(NANOSECONDS) < pauseNanos || channel.isShutdown()) {
                throw failure;
            }
            // gRPC's own pauses between connects grow to two minutes.
            channel.resetConnectBackoff();
            try {
                NANOSECONDS.sleep(pauseNanos);
            } catch (InterruptedException interrupt) {
                throw FastlaneException.ofInterrupt();
            }
        }
    }
}
