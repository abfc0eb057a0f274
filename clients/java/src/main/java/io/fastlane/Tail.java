package io.fastlane;

import static java.util.concurrent.TimeUnit.NANOSECONDS;

import io.fastlane.v1.JobLogEnd;
import io.fastlane.v1.LogEnd;
import io.fastlane.v1.StreamJobLogsResponse;
import io.grpc.ManagedChannel;
import java.time.Duration;
import java.util.Iterator;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.concurrent.CountDownLatch;

/**
 * A log, live or stored: {@code for (Message message : tail)}. It ends after its LogEnd or JobLogEnd, or throws a
 * FastlaneException. Interruptions are resumed: no byte is repeated or lost.
 *
 * <p>It can be read once, by one thread. Any thread may close it, which ends the loop of the reader.
 */
public final class Tail implements Iterable<Message>, Iterator<Message>, AutoCloseable {
    private final ManagedChannel channel;
    private final Asked asked;
    private final LogCheck check;
    private final CountDownLatch closed = new CountDownLatch(1);
    private volatile StreamCall call;
    private String cursor;
    private Message next;
    /** The time before the next call. */
    private Duration pause = Duration.ZERO;
    /** The interruptions without progress. */
    private int failures;
    /** The messages of this call. */
    private int received;

    Tail(ManagedChannel channel, Asked asked) {
        this.channel = channel;
        this.asked = asked;
        this.check = new LogCheck(asked);
        this.cursor = asked.cursor();
    }

    @Override
    public Iterator<Message> iterator() {
        return this;
    }

    @Override
    public boolean hasNext() {
        try {
            while (next == null && closed.getCount() > 0) {
                next = advance();
            }
        } catch (InterruptedException interrupt) {
            close();
            throw FastlaneException.ofInterrupt();
        }
        return next != null;
    }

    @Override
    public Message next() {
        if (!hasNext()) {
            throw new NoSuchElementException("the tail is over");
        }
        Message message = next;
        next = null;
        return message;
    }

    /** Ends the call. */
    @Override
    public void close() {
        closed.countDown();
        cancel();
    }

    private void cancel() {
        StreamCall last = call;
        if (last != null) {
            last.cancel();
        }
    }

    /** Returns the next message to tell, or null if what came is not to be told. */
    private Message advance() throws InterruptedException {
        try {
            return call == null ? begin() : receive();
        } catch (FastlaneException failure) {
            return interrupted(failure);
        }
    }

    private Message begin() throws InterruptedException {
        if (!closed.await(pause.toNanos(), NANOSECONDS)) {
            // gRPC's own pauses between connects grow to two minutes.
            channel.resetConnectBackoff();
            received = 0;
            call = asked.open().apply(cursor);
        }
        // Whoever closed this before there was a call could not end it.
        if (closed.getCount() == 0) {
            cancel();
        }
        return null;
    }

    private Message receive() throws InterruptedException {
        StreamJobLogsResponse response = call.receive(asked.silence());
        // The first message of a call comes before anything is read: only the second one is progress.
        received++;
        failures = received > 1 ? 0 : failures;
        Object event = check.take(response);
        cursor = response.getCursor();
        if (event instanceof JobLogEnd || (event instanceof LogEnd && !asked.ofJob())) {
            close();
        }
        boolean tells = event != null || response.getChunksCount() > 0;
        return tells ? new Message(response.getChunksList(), event, cursor) : null;
    }

    /** Returns the interruption as a message if the tail resumes after it. */
    private Message interrupted(FastlaneException failure) {
        boolean left = closed.getCount() == 0;
        cancel();
        call = null;
        if (left) {
            return null;
        }
        if (!failure.isResumable() || channel.isShutdown()) {
            close();
            throw failure;
        }
        pause = failure.pause(failures);
        failures++;
        return new Message(List.of(), failure, cursor);
    }
}
