package io.fastlane;

import java.time.Duration;
import java.util.List;
import java.util.function.Function;

/**
 * What a tail reads.
 *
 * @param ofJob whether it goes on after the end of an execution
 * @param whole whether the first byte comes first
 * @param open makes a call that begins after a cursor
 */
record Asked(
        boolean ofJob, String cursor, boolean whole, boolean text, List<Integer> sources,
        com.google.protobuf.Duration heartbeat, Function<String, StreamCall> open) {
    Asked {
        whole = whole && cursor.isEmpty();
        sources = sources.isEmpty() ? List.of(1, 2, 3) : sources;
    }

    /** Returns the time without a message after which a call is dead. */
    Duration silence() {
        long interval = Duration.ofSeconds(heartbeat.getSeconds(), heartbeat.getNanos()).toMillis();
        // An interval that is too short is for the server to refuse: its answer needs a moment.
        return Duration.ofMillis(interval == 0 ? 30_000 : Math.max(300, 3 * interval));
    }
}
