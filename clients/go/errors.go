package fastlane

import (
	"context"
	"math/rand"
	"slices"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Error is a call that failed: refused by the server, or interrupted on the way.
type Error struct {
	// Code is the status code of gRPC. DataLoss: a log is not what the server says it is; found by the client.
	Code codes.Code
	// Reason is a name of fastlane.v1.ErrorReason without its prefix. Empty: the error is not the server's.
	Reason  string
	Message string
	// Violations are the fields at fault of a request that is not valid: its path, and what is wrong with it.
	Violations []*errdetails.BadRequest_FieldViolation
	// Metadata says what the error is about, for example the id of the job.
	Metadata map[string]string
	// RetryAfter is how long the server asks to wait. Negative: it does not ask.
	RetryAfter time.Duration
}

func (e *Error) Error() string { return e.Message }

// GRPCStatus makes the code known to package status.
func (e *Error) GRPCStatus() *status.Status { return status.New(e.Code, e.Message) }

// passing are the codes of interruptions, unless the server has a reason.
var passing = []codes.Code{
	codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Internal, codes.Unknown,
}

// Passing says whether the same call may succeed later.
func (e *Error) Passing() bool {
	return e.RetryAfter >= 0 || (e.Reason == "" && slices.Contains(passing, e.Code))
}

// resumable says whether a stream that ended like this may be called again. Its request is never too large: without a
// reason, ResourceExhausted is a proxy's or the connection's.
func (e *Error) resumable() bool {
	return e.Passing() || (e.Code == codes.ResourceExhausted && e.Reason == "")
}

// errorOf returns the error of a failed call, with what its details say.
func errorOf(err error) *Error {
	answer := status.Convert(err)
	failure := &Error{Code: answer.Code(), Message: answer.Message(), RetryAfter: -1}
	// The handshake failed, which does not pass by itself.
	if failure.Code == codes.Unavailable && strings.Contains(failure.Message, "tls: ") {
		failure.Code = codes.Unauthenticated
	}
	// A code that gRPC does not have.
	if failure.Code > codes.Unauthenticated {
		failure.Code = codes.Unknown
	}
	for _, detail := range answer.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.Domain == "fastlane" {
				failure.Reason, failure.Metadata = detail.Reason, detail.Metadata
			}
		case *errdetails.BadRequest:
			failure.Violations = detail.FieldViolations
		case *errdetails.RetryInfo:
			failure.RetryAfter = detail.RetryDelay.AsDuration()
		}
	}
	return failure
}

const firstPause, longestPause = 100 * time.Millisecond, 5 * time.Second

// pause waits before the next try: longer after each failure, on top of what the server asks for. Up to a half is taken
// off at random, so that many clients do not come back together. It returns false if the context ends first.
func pause(ctx context.Context, failures int, failure *Error) bool {
	longest := min(firstPause<<min(failures, 10), longestPause)
	random := time.Duration(rand.Int63n(int64(longest / 2)))
	select {
	case <-ctx.Done():
		return false
	case <-time.After(max(failure.RetryAfter, 0) + longest/2 + random):
		return true
	}
}
