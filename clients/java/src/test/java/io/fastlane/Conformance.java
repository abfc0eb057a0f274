package io.fastlane;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.protobuf.ByteString;
import com.google.protobuf.Duration;
import com.google.rpc.BadRequest;
import io.fastlane.v1.EnqueueJobRequest;
import io.fastlane.v1.Job;
import io.fastlane.v1.JobLogEnd;
import io.fastlane.v1.JobLogExecution;
import io.fastlane.v1.JobSpec;
import io.fastlane.v1.LogChunk;
import io.fastlane.v1.LogEnd;
import io.fastlane.v1.LogGap;
import io.fastlane.v1.LogState;
import io.fastlane.v1.Source;
import io.fastlane.v1.StreamExecutionLogsRequest;
import io.fastlane.v1.StreamJobLogsRequest;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumMap;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.logging.LogManager;

/** The driver of the Java client: see clients/conformance.md. */
final class Conformance {
    private static final int FAILED = 70;
    private static final List<Source> SOURCES = List.of(Source.SOURCE_STDOUT, Source.SOURCE_STDERR);

    private final Map<String, String> options = new HashMap<>();
    private final List<String> args = new ArrayList<>();
    private OutputStream stdout;
    private OutputStream stderr;

    /** The report. */
    private final Map<String, Object> told = new HashMap<>();
    private final List<Map<String, Object>> gaps = new ArrayList<>();
    private final List<Integer> states = new ArrayList<>();
    private final List<String> executions = new ArrayList<>();
    private int disconnects;

    public static void main(String[] none) throws IOException {
        // gRPC logs to stderr.
        LogManager.getLogManager().reset();
        BufferedReader calls = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = calls.readLine(); line != null; line = calls.readLine()) {
            List<String> call = Arrays.asList(new Gson().fromJson(line, String[].class));
            System.out.println(new Conformance(call.subList(1, call.size())).report(call.get(0)));
        }
    }

    private Conformance(List<String> words) {
        for (String word : words) {
            String[] parts = word.split("=", 2);
            if (parts[0].equals("arg")) {
                args.add(parts[1]);
            }
            options.put(parts[0], parts[1]);
        }
    }

    private int report(String operation) throws IOException {
        int status = FAILED;
        try (OutputStream out = output("stdout"); OutputStream err = output("stderr"); FastlaneClient client = client()) {
            stdout = out;
            stderr = err;
            status = run(operation, client);
        } catch (FastlaneException failure) {
            told.put("error", error(failure));
        }
        told.putAll(Map.of("gaps", gaps, "states", states, "executions", executions, "disconnects", disconnects));
        Files.writeString(Path.of(options.get("report")), new GsonBuilder().serializeNulls().create().toJson(told));
        return status;
    }

    private OutputStream output(String name) throws IOException {
        return Files.newOutputStream(Path.of(options.get(name)), StandardOpenOption.WRITE);
    }

    private FastlaneClient client() {
        Map<Option, String> given = new EnumMap<>(Option.class);
        for (Option each : Option.values()) {
            String value = options.get(each.name().toLowerCase(Locale.ROOT));
            if (value != null) {
                given.put(each, value);
            }
        }
        return new FastlaneClient(options.get("address"), given);
    }

    private static Map<String, Object> error(FastlaneException failure) {
        List<List<String>> violations = new ArrayList<>();
        for (BadRequest.FieldViolation each : failure.violations()) {
            violations.add(List.of(each.getField(), each.getDescription()));
        }
        return Map.of(
                "code", failure.code().value(), "reason", failure.reason(), "message", failure.getMessage(),
                "violations", violations, "metadata", failure.metadata());
    }

    private int run(String operation, FastlaneClient connection) throws IOException {
        if (operation.equals("tail")) {
            return follow(connection);
        }
        FastlaneClient client = options.containsKey("timeout_seconds")
                ? connection.withTimeout(java.time.Duration.ofMillis(milliseconds("timeout_seconds")))
                : connection;
        Job job = switch (operation) {
            case "enqueue" -> client.enqueue(EnqueueJobRequest.newBuilder()
                    .setTaskId(options.get("task"))
                    .setSpec(JobSpec.newBuilder().setImage(options.get("image")).addAllArgs(args))
                    .setRequestId(options.getOrDefault("request_id", ""))
                    .build());
            case "get" -> client.get(options.get("job"));
            case "stop" -> client.stop(options.get("job"), options.getOrDefault("note", ""));
            default -> throw new IllegalArgumentException(operation);
        };
        told.put("job", Map.of(
                "id", job.getId(), "execution_id", job.getExecution().getId(), "state", job.getStateValue()));
        return 0;
    }

    private int follow(FastlaneClient client) throws IOException {
        int enough = Integer.parseInt(options.getOrDefault("stop_after_bytes", "0"));
        int written = 0;
        int status = 0;
        try (Tail tail = tail(client)) {
            for (Message message : tail) {
                for (LogChunk chunk : message.chunks()) {
                    written += write(chunk);
                }
                if (message.event() instanceof LogEnd end) {
                    status = end.getExitStatus();
                    told.put("exit_status", status);
                } else if (message.event() instanceof JobLogEnd end) {
                    status = end.getExitStatus();
                    told.put("exit_status", status);
                } else {
                    note(message.event());
                }
                told.put("cursor", message.cursor());
                if (enough > 0 && written >= enough) {
                    break;
                }
            }
        }
        return status;
    }

    private Tail tail(FastlaneClient client) {
        long milliseconds = milliseconds("heartbeat_seconds");
        Duration heartbeat = Duration.newBuilder()
                .setSeconds(milliseconds / 1000).setNanos((int) (milliseconds % 1000) * 1_000_000).build();
        String cursor = options.getOrDefault("cursor", "");
        if (options.containsKey("job")) {
            StreamJobLogsRequest.Builder request = StreamJobLogsRequest.newBuilder()
                    .setJobId(options.get("job")).setCursor(cursor).setText(isText()).addAllSources(SOURCES);
            return client.tailJob((milliseconds != 0 ? request.setHeartbeatInterval(heartbeat) : request).build());
        }
        StreamExecutionLogsRequest.Builder request = StreamExecutionLogsRequest.newBuilder()
                .setExecutionId(options.get("execution")).setCursor(cursor).setText(isText()).addAllSources(SOURCES);
        return client.tail((milliseconds != 0 ? request.setHeartbeatInterval(heartbeat) : request).build());
    }

    private int write(LogChunk chunk) throws IOException {
        ByteString data = isText() ? chunk.getTextBytes() : chunk.getData();
        data.writeTo(chunk.getSource() == Source.SOURCE_STDERR ? stderr : stdout);
        return data.size();
    }

    /** Adds an event that changes no exit status. */
    private void note(Object event) {
        if (event instanceof LogGap gap) {
            Map<String, Object> each = new HashMap<>(Map.of(
                    "source", gap.getSourceValue(), "offset", gap.getOffset(), "cause", gap.getCauseValue()));
            each.put("missing_bytes", gap.hasMissingBytes() ? gap.getMissingBytes() : null);
            gaps.add(each);
        } else if (event instanceof LogState state) {
            if (states.isEmpty() || states.get(states.size() - 1) != state.getStateValue()) {
                states.add(state.getStateValue());
            }
        } else if (event instanceof JobLogExecution start) {
            executions.add(start.getExecution().getId());
        } else if (event instanceof FastlaneException) {
            disconnects++;
        }
    }

    private boolean isText() {
        return options.getOrDefault("text", "").equals("true");
    }

    private long milliseconds(String name) {
        return Math.round(Double.parseDouble(options.getOrDefault(name, "0")) * 1000);
    }
}
