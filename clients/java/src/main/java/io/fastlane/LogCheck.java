package io.fastlane;

import com.google.protobuf.ByteString;
import io.fastlane.v1.JobLogEnd;
import io.fastlane.v1.JobLogExecution;
import io.fastlane.v1.LogChunk;
import io.fastlane.v1.LogEnd;
import io.fastlane.v1.LogGap;
import io.fastlane.v1.LogState;
import io.fastlane.v1.LogTotals;
import io.grpc.Status;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.zip.CRC32;

/** The bytes that came of the current execution: no offset may be repeated or missing, and the totals have to agree. */
final class LogCheck {
    private final boolean text;
    private final List<Integer> sources;
    private String executionId = "";
    private LogState state;
    private boolean ended;
    /** Whether the log of the execution is read from its first byte. */
    private boolean whole;
    private Map<Integer, Position> positions = new HashMap<>();

    LogCheck(boolean whole, boolean text, List<Integer> sources) {
        this.whole = whole;
        this.text = text;
        this.sources = sources.isEmpty() ? List.of(1, 2, 3) : sources;
    }

    /**
     * Checks a message and returns whether its event is to be told. A call that resumes begins with what was told
     * before: the execution, its state, perhaps its end.
     */
    boolean take(Message message) {
        for (LogChunk chunk : message.chunks()) {
            advance(chunk.getSourceValue(), chunk.getOffset(), chunk.getData());
        }
        if (message.event() instanceof JobLogExecution start) {
            return begin(start.getExecution().getId());
        }
        if (message.event() instanceof LogGap gap) {
            skip(gap);
            return true;
        }
        if (message.event() instanceof LogState now) {
            boolean changed = !now.equals(state);
            state = now;
            return changed;
        }
        if (message.event() instanceof LogEnd end && !ended) {
            verify(end);
            ended = true;
            return true;
        }
        return message.event() instanceof JobLogEnd;
    }

    private boolean begin(String id) {
        if (id.equals(executionId)) {
            return false;
        }
        whole = whole || !executionId.isEmpty();
        executionId = id;
        state = null;
        ended = false;
        positions = new HashMap<>();
        return true;
    }

    private void skip(LogGap gap) {
        advance(gap.getSourceValue(), gap.getOffset(), ByteString.EMPTY);
        Position at = position(gap.getSourceValue());
        at.offset += gap.getMissingBytes();
        at.whole = false;
    }

    /** Moves the position of the source, which has to be at this offset. Text may leap, but never goes back. */
    private void advance(int source, long offset, ByteString data) {
        Position at = position(source);
        if (at.known && offset != at.offset && !(text && offset > at.offset)) {
            throw inconsistent(source, "byte %d, expected byte %d".formatted(offset, at.offset));
        }
        at.offset = offset + data.size();
        at.known = true;
        at.sum.update(data.asReadOnlyByteBuffer());
    }

    /** Compares what came of an execution with what the server has. */
    private void verify(LogEnd end) {
        if (!end.getSealed() || text) {
            return;
        }
        for (int source : sources) {
            LogTotals has = end.getTotalsList().stream()
                    .filter(totals -> totals.getSourceValue() == source)
                    .findFirst().orElse(LogTotals.getDefaultInstance());
            Position at = position(source);
            boolean changed = at.whole && has.hasCrc32() && (int) at.sum.getValue() != has.getCrc32();
            if ((at.known && at.offset != has.getBytes()) || changed) {
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

    /** The offset of the next byte, if it is known, and the checksum of all before it, if they are the whole. */
    private static final class Position {
        private final CRC32 sum = new CRC32();
        private long offset;
        private boolean known;
        private boolean whole;

        Position(boolean whole) {
            this.known = whole;
            this.whole = whole;
        }
    }
}
