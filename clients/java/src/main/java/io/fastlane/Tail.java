package io.fastlane;

import io.fastlane.v1.JobLogEnd;
import io.fastlane.v1.LogEnd;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import java.time.Duration;
import java.util.Iterator;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;

/**
 * A log, live or stored: {@code for (Message message : tail)}. It ends after its LogEnd or JobLogEnd, or throws a
 * FastlaneException. Interruptions are resumed: no byte is repeated or lost.
 *
 * <p>It can be read once, by one thread. Any thread may close it, which ends the loop of the reader.
 */
public final class Tail implements Iterable<Message>, Iterator<Message>, AutoCloseable {
    private final ManagedChannel channel;
    private final Duration silence;
    private final LogCheck check;
    /** Makes a call that begins after a cursor. */
    private final Function<String, StreamCall<?, ?>> open;
    private final boolean ofJob;
    private final CountDownLatch closed = new CountDownLatch(1);
    private volatile StreamCall<?, ?> call;
    private String cursor;
    private Message next;
    private FastlaneException interruption;
    /** The interruptions without progress. */
    private int failures;
    /** The messages of this call. */
    private int received;

    Tail(
            ManagedChannel channel,
            boolean ofJob,
            String cursor,
            com.google.protobuf.Duration heartbeat,
            LogCheck check,
            Function<String, StreamCall<?, ?>> open) {
        Duration interval = Duration.ofSeconds(heartbeat.getSeconds(), heartbeat.getNanos());
        this.channel = channel;
        this.ofJob = ofJob;
        this.cursor = cursor;
        this.silence = interval.isZero() ? Duration.ofSeconds(30) : interval.multipliedBy(3);
        this.check = check;
        this.open = open;
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
            Thread.currentThread().interrupt();
            throw new FastlaneException(Status.Code.CANCELLED, "the thread was interrupted");
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
        StreamCall<?, ?> last = call;
        if (last != null) {
            last.cancel();
        }
    }

    /** Returns the next message to tell, or null if what came is not to be told. */
    private Message advance() throws InterruptedException {
        if (interruption != null) {
            // gRPC's own pauses between connects grow to two minutes.
            channel.resetConnectBackoff();
            boolean left = closed.await(interruption.pause(failures).toNanos(), TimeUnit.NANOSECONDS);
            interruption = null;
            failures++;
            if (left) {
                return null;
            }
        }
        try {
            return receive();
        } catch (FastlaneException failure) {
            return interrupted(failure);
        }
    }

    private Message receive() throws InterruptedException {
        if (call == null) {
            received = 0;
            call = open.apply(cursor);
            if (closed.getCount() == 0) {
                call.cancel();
            }
        }
        Message message = call.receive(silence);
        // The first message of a call comes before anything is read: only the second one is progress.
        received++;
        if (received > 1) {
            failures = 0;
        }
        Object event = check.take(message) ? message.event() : null;
        cursor = message.cursor();
        if (event instanceof JobLogEnd || (event instanceof LogEnd && !ofJob)) {
            close();
        }
        boolean tells = event != null || !message.chunks().isEmpty();
        return tells ? new Message(message.chunks(), event, cursor) : null;
    }

    /** Returns the interruption as a message if the tail resumes after it. */
    private Message interrupted(FastlaneException failure) {
        boolean left = closed.getCount() == 0;
        call.cancel();
        call = null;
        if (left) {
            return null;
        }
        if (!failure.isResumable() || channel.isShutdown()) {
            close();
            throw failure;
        }
        interruption = failure;
        return new Message(List.of(), failure, cursor);
    }
}
