package io.fastlane;

import com.google.protobuf.ByteString;
import io.fastlane.v1.JobLogExecution;
import io.fastlane.v1.LogChunk;
import io.fastlane.v1.LogEnd;
import io.fastlane.v1.LogGap;
import io.fastlane.v1.LogState;
import io.fastlane.v1.LogTotals;
import io.fastlane.v1.StreamJobLogsResponse;
import io.grpc.Status;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.zip.CRC32;

/** The bytes that came of the current execution: no offset may be repeated or missing, and the totals have to agree. */
final class LogCheck {
    private final Asked asked;
    private String executionId = "";
    private LogState state;
    private boolean ended;
    /** Whether the log of the execution is read from its first byte. */
    private boolean whole;
    private Map<Integer, Position> positions = new HashMap<>();

    LogCheck(Asked asked) {
        this.asked = asked;
        this.whole = asked.whole();
    }

    /**
     * Checks a message and returns its event, or null if there is none to tell. A call that resumes begins with what
     * was told before: the execution, its state, perhaps its end.
     */
    Object take(StreamJobLogsResponse message) {
        for (LogChunk chunk : message.getChunksList()) {
            advance(chunk.getSourceValue(), chunk.getOffset(), chunk.getData());
        }
        return switch (message.getEventCase()) {
            case EXECUTION -> begin(message.getExecution());
            case GAP -> skip(message.getGap());
            case STATE -> change(message.getState());
            case END -> finish(message.getEnd());
            case JOB_END -> message.getJobEnd();
            case HEARTBEAT, EVENT_NOT_SET -> null;
        };
    }

    private JobLogExecution begin(JobLogExecution start) {
        if (start.getExecution().getId().equals(executionId)) {
            return null;
        }
        whole = whole || !executionId.isEmpty();
        executionId = start.getExecution().getId();
        state = null;
        ended = false;
        positions = new HashMap<>();
        return start;
    }

    private LogGap skip(LogGap gap) {
        Position at = advance(gap.getSourceValue(), gap.getOffset(), ByteString.EMPTY);
        at.offset += gap.getMissingBytes();
        at.whole = false;
        return gap;
    }

    private LogState change(LogState now) {
        boolean changed = !now.equals(state);
        state = now;
        return changed ? now : null;
    }

    private LogEnd finish(LogEnd end) {
        if (ended) {
            return null;
        }
        verify(end);
        ended = true;
        return end;
    }

    /** Moves the position of the source, which has to be at this offset. Text may leap, but never goes back. */
    private Position advance(int source, long offset, ByteString data) {
        Position at = position(source);
        if (at.offset >= 0 && offset != at.offset && !(asked.text() && offset > at.offset)) {
            throw inconsistent(source, "byte %d, expected byte %d".formatted(offset, at.offset));
        }
        at.offset = offset + data.size();
        at.sum.update(data.asReadOnlyByteBuffer());
        return at;
    }

    /** Compares what came of an execution with what the server has. */
    private void verify(LogEnd end) {
        if (!end.getSealed() || asked.text()) {
            return;
        }
        for (int source : asked.sources()) {
            LogTotals has = end.getTotalsList().stream()
                    .filter(totals -> totals.getSourceValue() == source)
                    .findFirst().orElse(LogTotals.getDefaultInstance());
            Position at = position(source);
            boolean changed = at.whole && has.hasCrc32() && (int) at.sum.getValue() != has.getCrc32();
            if ((at.offset >= 0 && at.offset != has.getBytes()) || changed) {
                throw inconsistent(source, "%d bytes with checksum %08x came, the server has %d with %08x"
                        .formatted(at.offset, at.sum.getValue(), has.getBytes(), has.getCrc32()));
            }
        }
    }

    private static FastlaneException inconsistent(int source, String what) {
        String message = "the log is inconsistent in source %d: %s".formatted(source, what);
        return new FastlaneException(Status.Code.DATA_LOSS, message);
    }

    private Position position(int source) {
        return positions.computeIfAbsent(source, each -> new Position(whole));
    }

    /** The offset of the next byte, or -1 if it is unknown; the checksum of all before it, if they are the whole. */
    private static final class Position {
        private final CRC32 sum = new CRC32();
        private long offset;
        private boolean whole;

        Position(boolean whole) {
            this.offset = whole ? 0 : -1;
            this.whole = whole;
        }
    }
}
