// Command fastlane-tail runs a command in a container through a fastlane server, as if it ran here: its output comes live on stdout and
// stderr, and the exit status is the job's. It goes on by itself where the connection or the server drops. With -job it follows a job that
// is there already. Either way it follows the job over all its attempts and runs.
//
//	fastlane-tail [-address HOST:PORT] [-task NAME] IMAGE [WORD...]
//	fastlane-tail [-address HOST:PORT] -job ID
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"os"
	"os/signal"
	"slices"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	fastlanev1 "fastlane/v1"
)

const (
	heartbeat = 10 * time.Second
	// A connection that is dead says nothing. Three heartbeats that did not come are a cut.
	silence    = 3 * heartbeat
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

func main() {
	address := flag.String("address", cmp.Or(os.Getenv("FASTLANE_ADDRESS"), "127.0.0.1:7020"), "the server")
	task := flag.String("task", "fastlane-tail", "what to group the job under")
	jobID := flag.String("job", "", "follow this job instead of running an image")
	flag.Parse()
	if (flag.NArg() == 0) == (*jobID == "") {
		fmt.Fprintln(flag.CommandLine.Output(), "fastlane-tail: give either an image or -job")
		flag.Usage()
		os.Exit(2)
	}
	exitStatus, err := follow(context.Background(), *address, *jobID, *task, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "fastlane-tail:", err)
		os.Exit(1)
	}
	os.Exit(exitStatus)
}

// follow writes the logs of the job, or of a new one that runs these words, and returns the exit status of the job.
func follow(ctx context.Context, address, jobID, task string, words []string) (int, error) {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return 0, err
	}
	defer connection.Close()
	jobs := fastlanev1.NewJobServiceClient(connection)
	if jobID == "" {
		if jobID, err = enqueue(ctx, jobs, task, words[0], words[1:]); err != nil {
			return 0, err
		}
		go stopOnInterrupt(ctx, jobs, jobID)
	}
	tail := &tail{
		jobs: jobs,
		request: &fastlanev1.StreamJobLogsRequest{
			JobId:             jobID,
			Sources:           []fastlanev1.Source{fastlanev1.Source_SOURCE_STDOUT, fastlanev1.Source_SOURCE_STDERR},
			HeartbeatInterval: durationpb.New(heartbeat),
		},
	}
	if err := insist(ctx, func() (bool, error) { return tail.stream(ctx) }); err != nil {
		return 0, err
	}
	return int(tail.end.ExitStatus), nil
}

// enqueue makes a job that runs the words in the image, and returns its id.
func enqueue(ctx context.Context, jobs fastlanev1.JobServiceClient, task, image string, words []string) (id string, err error) {
	// With a request_id a call that was cut may be made again: the same one makes no second job.
	request := &fastlanev1.EnqueueJobRequest{
		TaskId:    task,
		Spec:      &fastlanev1.JobSpec{Image: image, Args: words},
		RequestId: rand.Text(),
	}
	err = insist(ctx, func() (bool, error) {
		answer, err := jobs.EnqueueJob(ctx, request)
		id = answer.GetJob().GetId()
		return false, err
	})
	return id, err
}

// stopOnInterrupt ends the job at the first Ctrl-C and shows what it still prints; the second one ends this program alone.
func stopOnInterrupt(ctx context.Context, jobs fastlanev1.JobServiceClient, jobID string) {
	interrupted, reset := signal.NotifyContext(ctx, os.Interrupt)
	<-interrupted.Done()
	reset()
	if _, err := jobs.StopJob(ctx, &fastlanev1.StopJobRequest{JobId: jobID, Note: "Ctrl-C"}); err != nil {
		fmt.Fprintln(os.Stderr, "fastlane-tail: the job could not be stopped:", err)
	}
}

// tail writes the logs of a job, however many streams that takes.
type tail struct {
	jobs    fastlanev1.JobServiceClient
	request *fastlanev1.StreamJobLogsRequest
	end     *fastlanev1.JobLogEnd
	// Of the current execution: its id, the checksums of what came of it, and whether anything is missing.
	executionID string
	sums        map[fastlanev1.Source]uint32
	gaps        bool
}

// stream goes on at the last cursor until the end, or a cut, which is an error. It says whether there was progress.
func (t *tail) stream(ctx context.Context) (came bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := t.jobs.StreamJobLogs(ctx, t.request)
	if err != nil {
		return false, err
	}
	watch := time.AfterFunc(silence, cancel)
	defer watch.Stop()
	for {
		message, err := stream.Recv()
		if err != nil {
			// An OK without an end is a cut, as any other; and so is what the watch cancelled.
			return came, fmt.Errorf("the stream was cut: %w", err)
		}
		// Whatever this reader is written to may take its time.
		watch.Stop()
		if err := t.take(message); err != nil {
			return came, err
		}
		// After its bytes are where they belong, not before.
		t.request.Cursor, came = message.Cursor, true
		if t.end != nil {
			return came, nil
		}
		watch.Reset(silence)
	}
}

func (t *tail) take(message *fastlanev1.StreamJobLogsResponse) error {
	for _, chunk := range message.Chunks {
		out := os.Stdout
		if chunk.Source == fastlanev1.Source_SOURCE_STDERR {
			out = os.Stderr
		}
		if _, err := out.Write(chunk.Data); err != nil {
			return final{err}
		}
		t.sums[chunk.Source] = crc32.Update(t.sums[chunk.Source], crc32.IEEETable, chunk.Data)
	}
	// An event that this program does not know is none of its business.
	switch event := message.Event.(type) {
	case *fastlanev1.StreamJobLogsResponse_Execution:
		// Each call begins with the current execution. It is another one only where the id is another one.
		if id := event.Execution.Execution.Id; id != t.executionID {
			t.executionID, t.sums, t.gaps = id, map[fastlanev1.Source]uint32{}, false
		}
	case *fastlanev1.StreamJobLogsResponse_Gap:
		t.gaps = true
		many := "some"
		if event.Gap.MissingBytes != nil {
			many = fmt.Sprint(*event.Gap.MissingBytes)
		}
		fmt.Fprintf(os.Stderr, "fastlane-tail: %s bytes of %v are missing here (%v)\n", many, event.Gap.Source, event.Gap.Cause)
	case *fastlanev1.StreamJobLogsResponse_End:
		return t.verify(event.End)
	case *fastlanev1.StreamJobLogsResponse_JobEnd:
		t.end = event.JobEnd
	}
	return nil
}

// verify compares what was written of the current execution with what its log is said to hold.
func (t *tail) verify(end *fastlanev1.LogEnd) error {
	for _, totals := range end.Totals {
		sum, asked := t.sums[totals.Source]
		if asked && !t.gaps && totals.Crc32 != nil && *totals.Crc32 != sum {
			return final{fmt.Errorf("what came of %v of execution %s is not what is stored", totals.Source, t.executionID)}
		}
	}
	return nil
}

// final is an error that no repetition mends.
type final struct{ error }

// insist calls again after what may pass, for as long as it takes; longer and longer apart where nothing comes.
func insist(ctx context.Context, call func() (came bool, err error)) error {
	pause := firstPause
	for {
		came, err := call()
		if err == nil {
			return nil
		}
		wait, refused := refusal(err)
		if refused {
			return err
		}
		if came {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(wait, pause)):
		}
		pause = min(2*pause, lastPause)
	}
}

// refusal says whether the server has refused for good, which it does with a reason and without RetryInfo; else how long it asks to wait.
func refusal(err error) (wait time.Duration, refused bool) {
	if errors.As(err, &final{}) {
		return 0, true
	}
	answer, ok := status.FromError(err)
	if !ok {
		return 0, false
	}
	for _, detail := range answer.Details() {
		switch detail := detail.(type) {
		case *errdetails.RetryInfo:
			return detail.RetryDelay.AsDuration(), false
		case *errdetails.ErrorInfo:
			refused = detail.Domain == "fastlane"
		}
	}
	// Whoever answers like this is no fastlane, or stands before one and lets nobody in.
	never := slices.Contains([]codes.Code{codes.Unimplemented, codes.Unauthenticated, codes.PermissionDenied}, answer.Code())
	return 0, refused || never
}
