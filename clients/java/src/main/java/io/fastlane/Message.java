package io.fastlane;

import io.fastlane.v1.LogChunk;
import io.fastlane.v1.StreamExecutionLogsResponse;
import io.fastlane.v1.StreamJobLogsResponse;
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
    static Message of(StreamExecutionLogsResponse response) {
        Object event = switch (response.getEventCase()) {
            case GAP -> response.getGap();
            case STATE -> response.getState();
            case END -> response.getEnd();
            case HEARTBEAT, EVENT_NOT_SET -> null;
        };
        return new Message(response.getChunksList(), event, response.getCursor());
    }

    static Message of(StreamJobLogsResponse response) {
        Object event = switch (response.getEventCase()) {
            case GAP -> response.getGap();
            case STATE -> response.getState();
            case END -> response.getEnd();
            case EXECUTION -> response.getExecution();
            case JOB_END -> response.getJobEnd();
            case HEARTBEAT, EVENT_NOT_SET -> null;
        };
        return new Message(response.getChunksList(), event, response.getCursor());
    }
}
