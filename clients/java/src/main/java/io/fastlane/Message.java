package io.fastlane;

import io.fastlane.v1.LogChunk;
import java.util.List;

/**
 * A step of a tail: output or one event.
 *
 * @param chunks output, in order
 * @param event a LogGap, LogState, LogEnd, JobLogExecution or JobLogEnd of package io.fastlane.v1, or a
 *     FastlaneException: the tail was interrupted and resumes by itself; null beside chunks
 * @param cursor the point after this message: store it after the output, and resume there
 */
public record Message(List<LogChunk> chunks, Object event, String cursor) {
}
