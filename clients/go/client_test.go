package fastlane_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"fastlane.example/fastlane"
	pb "fastlane.example/fastlane/v1"
)

// server streams a line and then heartbeats, until the test lets it end or its reader leaves.
type server struct {
	pb.UnimplementedJobServiceServer
	finish chan struct{}
	left   chan struct{}
}

func (s *server) GetJob(_ context.Context, request *pb.GetJobRequest) (*pb.GetJobResponse, error) {
	return &pb.GetJobResponse{Job: &pb.Job{Id: request.JobId}}, nil
}

func (s *server) StreamJobLogs(
	_ *pb.StreamJobLogsRequest, stream grpc.ServerStreamingServer[pb.StreamJobLogsResponse],
) error {
	chunk := &pb.LogChunk{Source: pb.Source_SOURCE_STDOUT, Data: []byte("line\n")}
	if err := stream.Send(&pb.StreamJobLogsResponse{Cursor: "1", Chunks: []*pb.LogChunk{chunk}}); err != nil {
		return err
	}
	select {
	case <-s.finish:
		end := &pb.StreamJobLogsResponse_JobEnd{JobEnd: &pb.JobLogEnd{ExitStatus: 3}}
		return stream.Send(&pb.StreamJobLogsResponse{Cursor: "2", Event: end})
	case <-stream.Context().Done():
		s.left <- struct{}{}
		return stream.Context().Err()
	}
}

func serve(t *testing.T) (*server, *fastlane.Client) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := &server{finish: make(chan struct{}), left: make(chan struct{}, 100)}
	running := grpc.NewServer()
	pb.RegisterJobServiceServer(running, served)
	go running.Serve(listener)
	client, err := fastlane.New(listener.Addr().String(), fastlane.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); running.Stop() })
	return served, client
}

func TestACancelledContextEndsATailWithItsError(t *testing.T) {
	served, client := serve(t)
	ctx, cancel := context.WithCancel(context.Background())
	var last error
	client.TailJob(ctx, &pb.StreamJobLogsRequest{JobId: "j"})(func(message *fastlane.Message, err error) bool {
		cancel()
		last = err
		return true
	})
	if !errors.Is(last, context.Canceled) {
		t.Errorf("it ended with %v", last)
	}
	<-served.left
}

func TestATailThatIsLeftEndsItsCall(t *testing.T) {
	served, client := serve(t)
	tail := client.TailJob(context.Background(), &pb.StreamJobLogsRequest{JobId: "j"})
	tail(func(*fastlane.Message, error) bool { return false })
	<-served.left
}

func TestATailMayBeReadTwiceAndItsRequestStays(t *testing.T) {
	served, client := serve(t)
	close(served.finish)
	request := &pb.StreamJobLogsRequest{JobId: "j"}
	before := proto.Clone(request)
	tail := client.TailJob(context.Background(), request)
	for range [2]int{} {
		if text := read(t, tail); text != "line\n3" {
			t.Errorf("read %q", text)
		}
	}
	if !proto.Equal(before, request) {
		t.Errorf("the request is now %v", request)
	}
}

func TestManyGoroutinesShareAClient(t *testing.T) {
	served, client := serve(t)
	close(served.finish)
	var group sync.WaitGroup
	for number := 0; number < 50; number++ {
		group.Add(1)
		go func(id string) {
			defer group.Done()
			job, err := client.Get(context.Background(), id)
			if err != nil || job.Id != id {
				t.Errorf("got %v, %v", job, err)
			}
			if text := read(t, client.TailJob(context.Background(), &pb.StreamJobLogsRequest{JobId: id})); text != "line\n3" {
				t.Errorf("read %q", text)
			}
		}(fmt.Sprint(number))
	}
	group.Wait()
}

func TestAnErrorHasItsCodeForPackageStatus(t *testing.T) {
	_, client := serve(t)
	_, err := client.Stop(context.Background(), "j", "")
	var refused *fastlane.Error
	if !errors.As(err, &refused) || refused.Code != codes.Unimplemented || status.Code(err) != codes.Unimplemented {
		t.Errorf("refused with %v", err)
	}
}

func TestACallEndsWithItsContext(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := listener.Addr().String()
	listener.Close()
	client, err := fastlane.New(nobody, fastlane.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	_, err = client.Get(ctx, "j")
	if code := status.Code(err); code != codes.Unavailable && code != codes.DeadlineExceeded {
		t.Errorf("it ended with %v", err)
	}
}

// read returns the output of a tail and, behind it, the exit status.
func read(t *testing.T, tail fastlane.Tail) (text string) {
	tail(func(message *fastlane.Message, err error) bool {
		if err != nil {
			t.Error(err)
			return false
		}
		for _, chunk := range message.Chunks {
			text += string(chunk.Data)
		}
		if end, ok := message.Event.(*pb.JobLogEnd); ok {
			text += fmt.Sprint(end.ExitStatus)
		}
		return true
	})
	return text
}
