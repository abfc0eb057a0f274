package io.fastlane;

import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.Status;
import java.time.Duration;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;

/** One call of a stream, read by one thread. A message is asked for when the one before is taken. */
final class StreamCall<Q, R> extends ClientCall.Listener<R> {
    private final ClientCall<Q, R> call;
    private final Function<R, Message> convert;
    /** Messages, then the FastlaneException that the call ended with. */
    private final BlockingQueue<Object> arrived = new LinkedBlockingQueue<>();

    StreamCall(ClientCall<Q, R> call, Q request, Function<R, Message> convert) {
        this.call = call;
        this.convert = convert;
        call.start(this, new Metadata());
        // One in advance, so that the next message is on its way while this one is written.
        call.request(2);
        call.sendMessage(request);
        call.halfClose();
    }

    /** Returns the next message. A dead connection says nothing: only the time in which this waits counts. */
    Message receive(Duration silence) throws InterruptedException {
        Object next = arrived.poll(silence.toNanos(), TimeUnit.NANOSECONDS);
        if (next instanceof Message message) {
            call.request(1);
            return message;
        }
        if (next instanceof FastlaneException failure) {
            throw failure;
        }
        String message = "no message for %.1f seconds, not even a heartbeat".formatted(silence.toMillis() / 1000.0);
        throw new FastlaneException(Status.Code.UNAVAILABLE, message);
    }

    void cancel() {
        call.cancel("the reader left", null);
    }

    @Override
    public void onMessage(R response) {
        arrived.add(convert.apply(response));
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
        arrived.add(status.isOk()
                ? new FastlaneException(Status.Code.UNAVAILABLE, "the stream ended early, without an end")
                : FastlaneException.of(status.asRuntimeException(trailers)));
    }
}
