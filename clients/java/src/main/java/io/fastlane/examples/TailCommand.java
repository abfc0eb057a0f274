package io.fastlane.examples;

import io.fastlane.FastlaneClient;
import io.fastlane.FastlaneException;
import io.fastlane.Message;
import io.fastlane.Tail;
import io.fastlane.v1.EnqueueJobRequest;
import io.fastlane.v1.JobLogEnd;
import io.fastlane.v1.JobSpec;
import io.fastlane.v1.LogChunk;
import io.fastlane.v1.LogGap;
import io.fastlane.v1.Source;
import io.fastlane.v1.StreamJobLogsRequest;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.util.ArrayDeque;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.logging.LogManager;

/**
 * Runs a command in a container as if it ran here: its output comes live, and the exit status is the job's. With -job
 * it follows a job that is there already.
 */
final class TailCommand {
    private static final String USAGE =
            "usage: tail [-address HOST:PORT] [-task NAME] (IMAGE [WORD...] | -job ID)";
    private static final CompletableFuture<Integer> status = new CompletableFuture<>();

    public static void main(String[] arguments) {
        // gRPC logs to stderr, which has the output of the job.
        LogManager.getLogManager().reset();
        Map<String, String> options = new HashMap<>(Map.of("-task", "tail"));
        options.put("-address", System.getenv().getOrDefault("FASTLANE_ADDRESS", "127.0.0.1:7020"));
        ArrayDeque<String> words = new ArrayDeque<>(List.of(arguments));
        while (words.size() > 1 && List.of("-address", "-task", "-job").contains(words.peek())) {
            options.put(words.pop(), words.pop());
        }
        boolean option = !words.isEmpty() && words.peek().startsWith("-");
        if (option || words.isEmpty() != options.containsKey("-job")) {
            String wrong = option ? "unknown or without a value: " + words.peek() : "give either an image or -job";
            exit(2, wrong + "\n" + USAGE);
        }
        try (FastlaneClient client = new FastlaneClient(options.get("-address"))) {
            String id = words.isEmpty() ? options.get("-job") : run(client, options.get("-task"), words);
            exit(follow(client, id), "");
        } catch (FastlaneException | IOException error) {
            exit(1, error.getMessage());
        }
    }

    private static String run(FastlaneClient client, String task, ArrayDeque<String> words) {
        JobSpec.Builder spec = JobSpec.newBuilder().setImage(words.pop()).addAllArgs(words);
        String id = client.enqueue(EnqueueJobRequest.newBuilder().setTaskId(task).setSpec(spec).build()).getId();
        // Ctrl-C stops the job, while its output goes on; a hook runs at the end of this program, too.
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            if (!status.isDone()) {
                client.stop(id, "Ctrl-C");
                Runtime.getRuntime().halt(status.join());
            }
        }));
        return id;
    }

    private static int follow(FastlaneClient client, String id) throws IOException {
        List<Source> sources = List.of(Source.SOURCE_STDOUT, Source.SOURCE_STDERR);
        // Unlike System.out, these tell when nobody reads.
        List<OutputStream> out = List.of(
                new FileOutputStream(FileDescriptor.out), new FileOutputStream(FileDescriptor.err));
        var request = StreamJobLogsRequest.newBuilder().setJobId(id).addAllSources(sources).build();
        try (Tail tail = client.tailJob(request)) {
            for (Message message : tail) {
                for (LogChunk chunk : message.chunks()) {
                    int at = sources.indexOf(chunk.getSource());
                    if (at >= 0) {
                        chunk.getData().writeTo(out.get(at));
                    }
                }
                if (message.event() instanceof LogGap gap) {
                    String what = "bytes of %s are missing here (%s)".formatted(gap.getSource(), gap.getCause());
                    System.err.println("tail: " + what);
                } else if (message.event() instanceof JobLogEnd end) {
                    return end.getExitStatus();
                }
            }
        }
        throw new IllegalStateException("a tail ends with its end or an error");
    }

    private static void exit(int code, String message) {
        if (!message.isEmpty()) {
            System.err.println("tail: " + message);
        }
        status.complete(code);
        System.exit(code);
    }
}
