package fastlane

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "fastlane.example/fastlane/v1"
)

// Message is a step of a tail: output or one event.
type Message struct {
	// Chunks are output, in order.
	Chunks []*pb.LogChunk
	// Event is a *LogGap, *LogState, *LogEnd, *JobLogExecution or *JobLogEnd of package v1, or an *Error: the
	// tail was interrupted and resumes by itself. Nil beside chunks.
	Event any
	// Cursor is the point after this message. Store it after the output, and resume there.
	Cursor string
}

// Tail is an iterator over a log, live or stored: `for message, err := range client.TailJob(ctx, request)`, or before Go
// 1.23 a function to call. It ends after its LogEnd or JobLogEnd, or with an error. Interruptions are resumed: no byte is
// repeated or lost.
type Tail = func(yield func(*Message, error) bool)

// Tail follows the log of an execution to its LogEnd.
func (c *Client) Tail(ctx context.Context, request *pb.StreamExecutionLogsRequest) Tail {
	return func(yield func(*Message, error) bool) {
		request := proto.Clone(request).(*pb.StreamExecutionLogsRequest)
		whole := request.TailLines == nil && request.SinceTime == nil && request.StartLine <= 1
		t := newTail(request.Cursor, request.HeartbeatInterval, whole, request.Text, request.Sources)
		t.follow(ctx, yield, func(ctx context.Context) (func() (response, error), error) {
			request.Cursor = t.cursor
			return receiver(c.executions.StreamExecutionLogs(ctx, request))
		})
	}
}

// TailJob follows the logs of all executions of a job, one after another, to the JobLogEnd.
func (c *Client) TailJob(ctx context.Context, request *pb.StreamJobLogsRequest) Tail {
	return func(yield func(*Message, error) bool) {
		request := proto.Clone(request).(*pb.StreamJobLogsRequest)
		whole := request.TailLines == nil && request.SinceTime == nil
		t := newTail(request.Cursor, request.HeartbeatInterval, whole, request.Text, request.Sources)
		t.follow(ctx, yield, func(ctx context.Context) (func() (response, error), error) {
			request.Cursor = t.cursor
			return receiver(c.jobs.StreamJobLogs(ctx, request))
		})
	}
}

const shortestSilence = 300 * time.Millisecond

// response is what the messages of both streams have in common.
type response interface {
	GetCursor() string
	GetChunks() []*pb.LogChunk
	GetGap() *pb.LogGap
	GetState() *pb.LogState
	GetEnd() *pb.LogEnd
}

// receiver returns the messages of either stream as responses.
func receiver[M any, P interface {
	*M
	response
}](stream grpc.ServerStreamingClient[M], err error) (func() (response, error), error) {
	return func() (response, error) {
		message, err := stream.Recv()
		return P(message), err
	}, err
}

// tail is the progress of one iteration.
type tail struct {
	cursor  string
	silence time.Duration
	sources []pb.Source
	text    bool
	over    bool
	// failures are the interruptions without progress.
	failures int
	// Of the current execution, whose log is read from its first byte or not.
	executionID string
	state       *pb.LogState
	ended       bool
	whole       bool
	positions   map[pb.Source]*position
}

func newTail(cursor string, heartbeat *durationpb.Duration, whole, text bool, sources []pb.Source) *tail {
	t := &tail{cursor: cursor, silence: 30 * time.Second, whole: whole && cursor == "", text: text, sources: sources}
	if heartbeat != nil {
		// An interval that is too short is for the server to refuse: its answer needs a moment.
		t.silence = max(3*heartbeat.AsDuration(), shortestSilence)
	}
	if len(sources) == 0 {
		t.sources = []pb.Source{1, 2, 3}
	}
	t.positions = map[pb.Source]*position{}
	return t
}

// caller makes a call, which resumes at the cursor, and returns what receives its messages.
type caller = func(context.Context) (receive func() (response, error), err error)

// follow makes calls until the tail is over.
func (t *tail) follow(ctx context.Context, yield func(*Message, error) bool, open caller) {
	for {
		failure := t.call(ctx, yield, open)
		switch {
		case t.over:
		case ctx.Err() != nil:
			yield(nil, ctx.Err())
		case !failure.resumable():
			yield(nil, failure)
		case yield(&Message{Event: failure, Cursor: t.cursor}, nil):
			pause(ctx, t.failures, failure)
			t.failures++
			continue
		}
		return
	}
}

// call makes one call and yields what it brings, until the tail is over or the call fails.
func (t *tail) call(ctx context.Context, yield func(*Message, error) bool, open caller) *Error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	receive, err := open(ctx)
	if err != nil {
		return errorOf(err)
	}
	var silent atomic.Bool
	for count := 1; ; count++ {
		// A dead connection says nothing. Only the time in which a message is waited for counts.
		watch := time.AfterFunc(t.silence, func() { silent.Store(true); cancel() })
		message, err := receive()
		watch.Stop()
		switch {
		case err != nil && silent.Load():
			return failed(codes.Unavailable, "no message for %v, not even a heartbeat", t.silence)
		case err == io.EOF:
			return failed(codes.Unavailable, "the stream ended early, without an end")
		case err != nil:
			return errorOf(err)
		}
		// The first message of a call comes before anything is read: only the second one is progress.
		if count > 1 {
			t.failures = 0
		}
		event, failure := t.take(message)
		if failure != nil {
			return failure
		}
		t.cursor = message.GetCursor()
		if chunks := message.GetChunks(); event != nil || len(chunks) > 0 {
			t.over = !yield(&Message{chunks, event, t.cursor}, nil) || t.over
		}
		if t.over {
			return nil
		}
	}
}

// take checks a message and returns its event, if there is one to tell. A call that resumes begins with what was told
// before: the execution, its state, perhaps its end.
func (t *tail) take(message response) (event any, failure *Error) {
	for _, chunk := range message.GetChunks() {
		if failure := t.advance(chunk.Source, chunk.Offset, chunk.Data); failure != nil {
			return nil, failure
		}
	}
	job, ofJob := message.(*pb.StreamJobLogsResponse)
	if ofJob {
		if start := job.GetExecution(); start != nil && start.Execution.GetId() != t.executionID {
			t.whole = t.whole || t.executionID != ""
			t.executionID, t.state, t.ended = start.Execution.GetId(), nil, false
			t.positions = map[pb.Source]*position{}
			return start, nil
		}
		if end := job.GetJobEnd(); end != nil {
			t.over = true
			return end, nil
		}
	}
	if gap := message.GetGap(); gap != nil {
		failure := t.advance(gap.Source, gap.Offset, nil)
		at := t.position(gap.Source)
		at.offset, at.whole = at.offset+gap.GetMissingBytes(), false
		return gap, failure
	}
	if state := message.GetState(); state != nil && !proto.Equal(state, t.state) {
		t.state = state
		return state, nil
	}
	if end := message.GetEnd(); end != nil && !t.ended {
		failure := t.verify(end)
		t.ended, t.over = true, !ofJob && failure == nil
		return end, failure
	}
	return nil, nil
}

// position is the offset of the next byte of a source, if it is known, and the checksum of all before it, if they are
// the whole.
type position struct {
	offset       int64
	sum          uint32
	known, whole bool
}

func (t *tail) position(source pb.Source) *position {
	if t.positions[source] == nil {
		t.positions[source] = &position{known: t.whole, whole: t.whole}
	}
	return t.positions[source]
}

// advance moves the position of the source, which has to be at this offset. Text may leap, but never goes back.
func (t *tail) advance(source pb.Source, offset int64, data []byte) *Error {
	at := t.position(source)
	if at.known && offset != at.offset && !(t.text && offset > at.offset) {
		return failed(codes.DataLoss, "the log is inconsistent in %v: byte %d, expected byte %d", source, offset, at.offset)
	}
	at.offset, at.known = offset+int64(len(data)), true
	at.sum = crc32.Update(at.sum, crc32.IEEETable, data)
	return nil
}

// verify compares what came of an execution with what the server has.
func (t *tail) verify(end *pb.LogEnd) *Error {
	if !end.Sealed || t.text {
		return nil
	}
	for _, source := range t.sources {
		has := &pb.LogTotals{}
		if i := slices.IndexFunc(end.Totals, func(each *pb.LogTotals) bool { return each.Source == source }); i >= 0 {
			has = end.Totals[i]
		}
		at := t.position(source)
		if (at.known && at.offset != has.Bytes) || (at.whole && has.Crc32 != nil && at.sum != *has.Crc32) {
			came := fmt.Sprintf("%d bytes with checksum %08x came", at.offset, at.sum)
			return failed(codes.DataLoss, "the log is inconsistent in %v: %s, the server has %d with %08x", source, came, has.Bytes, has.GetCrc32())
		}
	}
	return nil
}

func failed(code codes.Code, format string, values ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, values...), RetryAfter: -1}
}
