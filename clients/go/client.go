// Package fastlane is a client of a fastlane server, which runs commands in containers and streams their output.
//
// Calls are repeated while the server cannot be reached. A tail never repeats a byte and never drops one in silence.
package fastlane

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "fastlane.example/fastlane/v1"
)

// callTimeout bounds a call and its repetitions if its context has no deadline.
const callTimeout = 30 * time.Second

// Client is a connection to a server. Its methods may be called from any goroutine.
type Client struct {
	connection *grpc.ClientConn
	jobs       pb.JobServiceClient
	executions pb.ExecutionServiceClient
}

// New returns a client of the server at HOST:PORT. It connects when the first call is made, without TLS unless an option
// says otherwise.
func New(address string, options ...grpc.DialOption) (*Client, error) {
	options = append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// Finds a dead connection while a call is open.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// gRPC's own pauses between connects grow to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 5 * time.Second, Backoff: backoff.Config{
			BaseDelay: firstPause, Multiplier: 2, Jitter: 0.2, MaxDelay: longestPause,
		}}),
	}, options...)
	connection, err := grpc.NewClient(address, options...)
	if err != nil {
		return nil, err
	}
	return &Client{connection, pb.NewJobServiceClient(connection), pb.NewExecutionServiceClient(connection)}, nil
}

// WithToken is an option of New for a server that requires a token: each call shows what the function returns.
func WithToken(token func() (string, error)) grpc.DialOption {
	return grpc.WithPerRPCCredentials(shownToken(token))
}

// WithTokenFile is WithToken for a file, which is read anew for each call.
func WithTokenFile(path string) grpc.DialOption {
	return WithToken(func() (string, error) {
		text, err := os.ReadFile(path)
		return strings.TrimSpace(string(text)), err
	})
}

// shownToken is the credentials of a call. A server on loopback may want a token without TLS.
type shownToken func() (string, error)

func (t shownToken) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := t()
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "the token: %v", err)
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

func (t shownToken) RequireTransportSecurity() bool { return false }

// Close ends all calls and tails.
func (c *Client) Close() error { return c.connection.Close() }

// Enqueue stores a job and returns it with its first execution. Without a request_id it makes one, so that a call that
// was interrupted is repeated and makes no second job.
func (c *Client) Enqueue(ctx context.Context, request *pb.EnqueueJobRequest) (*pb.Job, error) {
	if request.GetRequestId() == "" {
		id := make([]byte, 16)
		if _, err := rand.Read(id); err != nil {
			return nil, err
		}
		request = proto.Clone(request).(*pb.EnqueueJobRequest)
		request.RequestId = hex.EncodeToString(id)
	}
	answer, err := call(ctx, c.jobs.EnqueueJob, request)
	return answer.GetJob(), err
}

// Get returns the job as it is now, with its current execution.
func (c *Client) Get(ctx context.Context, jobID string) (*pb.Job, error) {
	answer, err := call(ctx, c.jobs.GetJob, &pb.GetJobRequest{JobId: jobID})
	return answer.GetJob(), err
}

// Stop ends the job: its signal, the grace period, then a kill. It returns when that has begun.
func (c *Client) Stop(ctx context.Context, jobID, note string) (*pb.Job, error) {
	answer, err := call(ctx, c.jobs.StopJob, &pb.StopJobRequest{JobId: jobID, Note: note})
	return answer.GetJob(), err
}

// call makes a call that may be sent twice, and repeats it while the error may pass and there is time.
func call[Request, Response any](
	ctx context.Context,
	method func(context.Context, Request, ...grpc.CallOption) (Response, error),
	request Request,
) (Response, error) {
	if _, limited := ctx.Deadline(); !limited {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	for failures := 0; ; failures++ {
		answer, err := method(ctx, request)
		if err == nil {
			return answer, nil
		}
		failure := errorOf(err)
		if !failure.Passing() || !pause(ctx, failures, failure) {
			return answer, failure
		}
	}
}
