package io.fastlane;

import static io.grpc.Status.Code.UNAVAILABLE;
import static java.util.concurrent.TimeUnit.MILLISECONDS;
import static java.util.concurrent.TimeUnit.NANOSECONDS;

import com.google.protobuf.Duration;
import io.fastlane.v1.JobLogEnd;
import io.fastlane.v1.LogEnd;
import io.fastlane.v1.StreamJobLogsResponse;
import io.grpc.ManagedChannel;
import io.grpc.StatusException;
import io.grpc.stub.BlockingClientCall;
import java.util.ArrayDeque;
import java.util.Iterator;
import java.util.List;
import java.util.Optional;
import java.util.Queue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeoutException;
import java.util.function.Function;

/**
 * A log, live or stored: {@code for (Message message : tail)}. It ends after its LogEnd or JobLogEnd, or throws a
 * FastlaneException. Interruptions are resumed: no byte is repeated or lost.
 *
 * <p>It can be read once, by one thread. Any thread may close it, which ends the loop of the reader.
 */
public final class Tail implements Iterable<Message>, Iterator<Message>, AutoCloseable {
    private final ManagedChannel channel;
    private final boolean ofJob;
    private final LogCheck check;
    private final Function<String, BlockingClientCall<?, StreamJobLogsResponse>> open;
    /** A call without a message for so long is dead. */
    private final long silenceMillis;
    private final CountDownLatch closed = new CountDownLatch(1);
    private final Queue<Message> ready = new ArrayDeque<>();
    private volatile BlockingClientCall<?, StreamJobLogsResponse> call;
    private String cursor;
    /** The time before the next call. */
    private long pauseNanos;
    /** The interruptions without progress. */
    private int failures;
    /** The messages of this call. */
    private int received;

    Tail(ManagedChannel channel, boolean ofJob, String cursor, Duration heartbeat, LogCheck check,
            Function<String, BlockingClientCall<?, StreamJobLogsResponse>> open) {
        this.channel = channel;
        this.ofJob = ofJob;
        this.cursor = cursor;
        this.check = check;
        this.open = open;
        long interval = heartbeat.getSeconds() * 1000 + heartbeat.getNanos() / 1_000_000;
        // An interval that is too short is for the server to refuse: its answer needs a moment.
        this.silenceMillis = interval == 0 ? 30_000 : Math.max(300, 3 * interval);
    }

    @Override
    public Iterator<Message> iterator() {
        return this;
    }

    @Override
    public boolean hasNext() {
        while (ready.isEmpty() && closed.getCount() > 0) {
            try {
                if (call == null) {
                    begin();
                } else {
                    // A dead connection says nothing: only the time in which this waits counts.
                    take(call.read(silenceMillis, MILLISECONDS));
                }
            } catch (TimeoutException silence) {
                String message = "no message for " + silenceMillis / 1000.0 + " s, not even a heartbeat";
                interrupt(new FastlaneException(UNAVAILABLE, message));
            } catch (StatusException failure) {
                interrupt(FastlaneException.of(failure.getStatus(), failure.getTrailers()));
            } catch (FastlaneException failure) {
                interrupt(failure);
            } catch (InterruptedException interrupt) {
                close();
                throw FastlaneException.ofInterrupt();
            }
        }
        return !ready.isEmpty();
    }

    @Override
    public Message next() {
        hasNext();
        return ready.remove();
    }

    /** Ends the call. */
    @Override
    public void close() {
        closed.countDown();
        cancel();
    }

    private void cancel() {
        Optional.ofNullable(call).ifPresent(last -> last.cancel("the reader left", null));
    }

    private void begin() throws InterruptedException {
        if (!closed.await(pauseNanos, NANOSECONDS)) {
            // gRPC's own pauses between connects grow to two minutes.
            channel.resetConnectBackoff();
            received = 0;
            call = open.apply(cursor);
        }
        // Whoever closed this before there was a call could not end it.
        if (closed.getCount() == 0) {
            cancel();
        }
    }

    private void take(StreamJobLogsResponse response) {
        if (response == null) {
            throw new FastlaneException(UNAVAILABLE, "the stream ended early, without an end");
        }
        // The first message of a call comes before anything is read: only the second one is progress.
        failures = received++ > 0 ? 0 : failures;
        Object event = check.take(response);
        cursor = response.getCursor();
        if (event != null || response.getChunksCount() > 0) {
            ready.add(new Message(response.getChunksList(), event, cursor));
        }
        if (event instanceof JobLogEnd || (event instanceof LogEnd && !ofJob)) {
            close();
        }
    }

    /** Tells an interruption if the tail resumes after it. */
    private void interrupt(FastlaneException failure) {
        cancel();
        call = null;
        if (closed.getCount() == 0) {
            return;
        }
        if (!failure.isResumable() || channel.isShutdown()) {
            close();
            throw failure;
        }
        pauseNanos = failure.pause(failures++).toNanos();
        ready.add(new Message(List.of(), failure, cursor));
    }
}
