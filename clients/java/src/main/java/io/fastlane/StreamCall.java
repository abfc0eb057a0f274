package io.fastlane;

import static io.grpc.Status.Code.UNAVAILABLE;

import io.fastlane.v1.StreamJobLogsResponse;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.time.Duration;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;

/** One call of a stream, read by one thread. A message is asked for when the one before is taken. */
final class StreamCall extends ClientCall.Listener<StreamJobLogsResponse> {
    private final ClientCall<?, ?> call;
    /** What returns a message each, then what throws the error that the call ended with. */
    private final BlockingQueue<Supplier<StreamJobLogsResponse>> arrived = new LinkedBlockingQueue<>();

    <Q> StreamCall(Channel channel, MethodDescriptor<Q, StreamJobLogsResponse> method, Q request) {
        ClientCall<Q, StreamJobLogsResponse> begun = channel.newCall(method, CallOptions.DEFAULT);
        call = begun;
        begun.start(this, new Metadata());
        // One in advance, so that the next message is on its way while this one is written.
        begun.request(2);
        begun.sendMessage(request);
        begun.halfClose();
    }

    /** Returns the next message. A dead connection says nothing: only the time in which this waits counts. */
    StreamJobLogsResponse receive(Duration silence) throws InterruptedException {
        Supplier<StreamJobLogsResponse> next = arrived.poll(silence.toNanos(), TimeUnit.NANOSECONDS);
        if (next == null) {
            String message = "no message for %.1f seconds, not even a heartbeat".formatted(silence.toMillis() / 1000.0);
            throw new FastlaneException(UNAVAILABLE, message);
        }
        call.request(1);
        return next.get();
    }

    void cancel() {
        call.cancel("the reader left", null);
    }

    @Override
    public void onMessage(StreamJobLogsResponse response) {
        arrived.add(() -> response);
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
        arrived.add(() -> {
            throw status.isOk()
                    ? new FastlaneException(UNAVAILABLE, "the stream ended early, without an end")
                    : FastlaneException.of(status.asRuntimeException(trailers));
        });
    }
}
