package io.fastlane;

import static io.grpc.Status.Code.DATA_LOSS;

import com.google.protobuf.ByteString;
import io.fastlane.v1.JobLogExecution;
import io.fastlane.v1.LogChunk;
import io.fastlane.v1.LogEnd;
import io.fastlane.v1.LogGap;
import io.fastlane.v1.LogState;
import io.fastlane.v1.LogTotals;
import io.fastlane.v1.StreamJobLogsResponse;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.zip.CRC32;

/** The bytes that came of the current execution: no offset may be repeated or missing, and the totals have to agree. */
final class LogCheck {
    private final boolean text;
    private final List<Integer> sources;
    private final Map<Integer, Position> positions = new HashMap<>();
    private String executionId = "";
    private LogState state;
    private boolean ended;
    /** Whether the log of the execution is read from its first byte. */
    private boolean whole;

    LogCheck(boolean whole, boolean text, List<Integer> sources) {
        this.whole = whole;
        this.text = text;
        this.sources = sources.isEmpty() ? List.of(1, 2, 3) : sources;
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
        positions.clear();
        return start;
    }

    private LogGap skip(LogGap gap) {
        advance(gap.getSourceValue(), gap.getOffset(), ByteString.EMPTY);
        Position at = position(gap.getSourceValue());
        positions.put(gap.getSourceValue(), new Position(at.offset + gap.getMissingBytes(), false, at.sum));
        return gap;
    }

    private LogState change(LogState now) {
        LogState before = state;
        state = now;
        return now.equals(before) ? null : now;
    }

    private LogEnd finish(LogEnd end) {
        boolean told = ended;
        ended = true;
        if (!told && end.getSealed() && !text) {
            sources.forEach(source -> verify(source, end));
        }
        return told ? null : end;
    }

    /** Moves the position of the source, which has to be at this offset. Text may leap, but never goes back. */
    private void advance(int source, long offset, ByteString data) {
        Position at = position(source);
        if (at.offset >= 0 && offset != at.offset && !(text && offset > at.offset)) {
            throw inconsistent(source, "byte %d, expected byte %d".formatted(offset, at.offset));
        }
        at.sum.update(data.asReadOnlyByteBuffer());
        positions.put(source, new Position(offset + data.size(), at.whole, at.sum));
    }

    /** Compares what came of a source with what the server has. */
    private void verify(int source, LogEnd end) {
        LogTotals has = end.getTotalsList().stream().filter(totals -> totals.getSourceValue() == source)
                .findFirst().orElse(LogTotals.getDefaultInstance());
        Position at = position(source);
        boolean changed = at.whole && has.hasCrc32() && (int) at.sum.getValue() != has.getCrc32();
        if ((at.offset >= 0 && at.offset != has.getBytes()) || changed) {
            throw inconsistent(source, "%d bytes with checksum %08x came, the server has %d with %08x"
                    .formatted(at.offset, at.sum.getValue(), has.getBytes(), has.getCrc32()));
        }
    }

    private static FastlaneException inconsistent(int source, String what) {
        return new FastlaneException(DATA_LOSS, "the log is inconsistent in source %d: %s".formatted(source, what));
    }

    private Position position(int source) {
        return positions.computeIfAbsent(source, each -> new Position(whole ? 0 : -1, whole, new CRC32()));
    }

    /**
     * How far a source was read.
     *
     * @param offset of the next byte; -1: unknown
     * @param whole whether the sum is of all bytes before it
     */
    private record Position(long offset, boolean whole, CRC32 sum) {
    }
}
