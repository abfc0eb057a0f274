// Package fastlane is a client of a fastlane server, which runs commands in containers and streams their output.
//
// Calls are repeated while the server cannot be reached. A tail never repeats a byte and never drops one in silence.
package fastlane

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
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

// Options are how a client connects. The zero value: without TLS, without a token.
type Options struct {
	// TLSCA turns TLS on: a PEM file with the authority that signed the server's certificate. "system": this
	// machine's authorities.
	TLSCA string
	// TLSCert and TLSKey turn TLS on: PEM files of the client's own certificate and its key, for a server that
	// requires one.
	TLSCert, TLSKey string
	// Token is shown with each call, for a server that requires one.
	Token string
	// TokenFile is a file with the token, which is read anew for each call.
	TokenFile string
	// Traceparent and Tracestate, of W3C Trace Context, are sent with each call: jobs belong to that trace. Set neither
	// if Dial instruments the calls for OpenTelemetry. The server ignores what is not valid.
	Traceparent, Tracestate string
	// Dial are further options of gRPC.
	Dial []grpc.DialOption
}

// New returns a client of the server at HOST:PORT. It connects when the first call is made.
func New(address string, options Options) (*Client, error) {
	secure, err := options.transport()
	if err != nil {
		return nil, failed(codes.Unauthenticated, "TLS: %v", err)
	}
	// A token that cannot be used is told at once, not after the first connect.
	if _, err := callMetadata(options).GetRequestMetadata(context.Background()); err != nil {
		return nil, err
	}
	dial := append([]grpc.DialOption{
		grpc.WithTransportCredentials(secure),
		grpc.WithPerRPCCredentials(callMetadata(options)),
		// Finds a dead connection while a call is open.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// gRPC's own pauses between connects grow to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 5 * time.Second, Backoff: backoff.Config{
			BaseDelay: firstPause, Multiplier: 2, Jitter: 0.2, MaxDelay: longestPause,
		}}),
	}, options.Dial...)
	connection, err := grpc.NewClient(address, dial...)
	if err != nil {
		return nil, err
	}
	return &Client{connection, pb.NewJobServiceClient(connection), pb.NewExecutionServiceClient(connection)}, nil
}

func (o Options) transport() (credentials.TransportCredentials, error) {
	if o.TLSCA+o.TLSCert+o.TLSKey == "" {
		return insecure.NewCredentials(), nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.TLSCA != "" && o.TLSCA != "system" {
		pem, err := os.ReadFile(o.TLSCA)
		if err != nil {
			return nil, err
		}
		if config.RootCAs = x509.NewCertPool(); !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate in PEM", o.TLSCA)
		}
	}
	if (o.TLSCert == "") != (o.TLSKey == "") {
		return nil, errors.New("the certificate and its key go together: give both, or neither")
	}
	if o.TLSCert != "" {
		own, err := tls.LoadX509KeyPair(o.TLSCert, o.TLSKey)
		if err != nil {
			return nil, fmt.Errorf("%s and %s: %w", o.TLSCert, o.TLSKey, err)
		}
		config.Certificates = []tls.Certificate{own}
	}
	return credentials.NewTLS(config), nil
}

// callMetadata is the credentials of each call, and its place in a trace. A server on loopback may want a token
// without TLS.
type callMetadata Options

func (o callMetadata) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token := o.Token
	if o.TokenFile != "" {
		text, err := os.ReadFile(o.TokenFile)
		if err != nil {
			return nil, failed(codes.Unauthenticated, "the token: %v", err)
		}
		token = string(text)
	}
	token = strings.TrimSpace(token)
	if !isSendable(token) {
		return nil, failed(codes.Unauthenticated, "a token has printable characters of ASCII only")
	}
	metadata := map[string]string{}
	if token != "" {
		metadata["authorization"] = "Bearer " + token
	}
	if o.Traceparent != "" && isSendable(o.Traceparent) {
		metadata["traceparent"] = o.Traceparent
		if o.Tracestate != "" && isSendable(o.Tracestate) {
			metadata["tracestate"] = o.Tracestate
		}
	}
	return metadata, nil
}

func isSendable(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' })
}

func (o callMetadata) RequireTransportSecurity() bool { return false }

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
