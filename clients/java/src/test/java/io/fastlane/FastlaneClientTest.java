package io.fastlane;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.ByteString;
import io.fastlane.v1.GetJobRequest;
import io.fastlane.v1.GetJobResponse;
import io.fastlane.v1.Job;
import io.fastlane.v1.JobLogEnd;
import io.fastlane.v1.JobServiceGrpc;
import io.fastlane.v1.LogChunk;
import io.fastlane.v1.Source;
import io.fastlane.v1.StreamJobLogsRequest;
import io.fastlane.v1.StreamJobLogsResponse;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Server;
import io.grpc.Status;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.time.Duration;
import java.time.temporal.ChronoUnit;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** What the conformance suite cannot see: how a tail ends when its own program wants it to. */
@Timeout(60)
final class FastlaneClientTest {
    private static final StreamJobLogsRequest REQUEST = StreamJobLogsRequest.newBuilder().setJobId("j").build();

    private final LineServer lines = new LineServer();
    private Server server;
    private FastlaneClient client;

    @BeforeEach
    void serve() throws IOException {
        server = Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create()).addService(lines).build().start();
        client = new FastlaneClient("127.0.0.1:" + server.getPort());
    }

    @AfterEach
    void stop() {
        client.close();
        server.shutdownNow();
    }

    @Test
    void aTailThatIsLeftEndsItsCall() throws InterruptedException {
        try (Tail tail = client.tailJob(REQUEST)) {
            assertEquals("line\n", tail.next().chunks().get(0).getData().toStringUtf8());
        }
        lines.left.await();
    }

    @Test
    void aTailThatAnotherThreadClosesIsOver() throws InterruptedException, ExecutionException, TimeoutException {
        Tail tail = client.tailJob(REQUEST);
        tail.next();
        CompletableFuture<Boolean> more = CompletableFuture.supplyAsync(tail::hasNext);
        tail.close();
        assertFalse(more.get(10, TimeUnit.SECONDS));
        assertThrows(NoSuchElementException.class, tail::next);
        lines.left.await();
    }

    @Test
    void aTailThatIsClosedFirstMakesNoCall() {
        Tail tail = client.tailJob(REQUEST);
        tail.close();
        assertFalse(tail.hasNext());
        assertEquals(1, lines.left.getCount());
    }

    @Test
    void aClosedClientEndsItsTails() {
        Tail tail = client.tailJob(REQUEST);
        tail.next();
        client.close();
        FastlaneException failure = assertThrows(FastlaneException.class, tail::hasNext);
        assertEquals(Status.Code.UNAVAILABLE, failure.code());
        assertFalse(tail.hasNext());
    }

    @Test
    void anInterruptOfTheThreadEndsATail() throws InterruptedException {
        Tail tail = client.tailJob(REQUEST);
        tail.next();
        Thread.currentThread().interrupt();
        FastlaneException failure = assertThrows(FastlaneException.class, tail::hasNext);
        assertEquals(Status.Code.CANCELLED, failure.code());
        assertTrue(Thread.interrupted());
        lines.left.await();
    }

    @Test
    void anInterruptOfTheThreadEndsACall() {
        Thread.currentThread().interrupt();
        FastlaneException failure = assertThrows(FastlaneException.class, () -> client.get("j"));
        assertEquals(Status.Code.CANCELLED, failure.code());
        assertTrue(Thread.interrupted());
    }

    @Test
    void aTailEndsWithItsEnd() {
        lines.finish = true;
        Tail tail = client.tailJob(REQUEST);
        assertEquals("1", tail.next().cursor());
        assertTrue(tail.next().event() instanceof JobLogEnd end && end.getExitStatus() == 3);
        assertFalse(tail.hasNext());
    }

    @Test
    void manyThreadsShareAClient() {
        List<String> ids = IntStream.range(0, 100).parallel().mapToObj(n -> client.get("j" + n).getId()).toList();
        assertEquals(IntStream.range(0, 100).mapToObj(n -> "j" + n).toList(), ids);
    }

    @Test
    void aCallMayHaveForever() {
        assertEquals("j", client.withTimeout(ChronoUnit.FOREVER.getDuration()).get("j").getId());
    }

    @Test
    void anErrorSaysThatTheConnectionWasRefused() throws IOException {
        int port;
        try (ServerSocket free = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            port = free.getLocalPort();
        }
        try (FastlaneClient nobody = new FastlaneClient("127.0.0.1:" + port)) {
            FastlaneClient hurried = nobody.withTimeout(Duration.ofSeconds(4));
            FastlaneException failure = assertThrows(FastlaneException.class, () -> hurried.get("j"));
            assertTrue(failure.getMessage().contains("refused"), failure.getMessage());
        }
    }

    /** Streams a line and then nothing until its reader leaves, or the end. */
    private static final class LineServer extends JobServiceGrpc.JobServiceImplBase {
        private final CountDownLatch left = new CountDownLatch(1);
        private volatile boolean finish;

        @Override
        public void getJob(GetJobRequest request, StreamObserver<GetJobResponse> answer) {
            answer.onNext(GetJobResponse.newBuilder().setJob(Job.newBuilder().setId(request.getJobId())).build());
            answer.onCompleted();
        }

        @Override
        public void streamJobLogs(StreamJobLogsRequest request, StreamObserver<StreamJobLogsResponse> answer) {
            ((ServerCallStreamObserver<StreamJobLogsResponse>) answer).setOnCancelHandler(left::countDown);
            LogChunk chunk = LogChunk.newBuilder()
                    .setSource(Source.SOURCE_STDOUT).setData(ByteString.copyFromUtf8("line\n")).build();
            answer.onNext(StreamJobLogsResponse.newBuilder().setCursor("1").addChunks(chunk).build());
            if (finish) {
                JobLogEnd end = JobLogEnd.newBuilder().setExitStatus(3).build();
                answer.onNext(StreamJobLogsResponse.newBuilder().setCursor("2").setJobEnd(end).build());
                answer.onCompleted();
            }
        }
    }
}
