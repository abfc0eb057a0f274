// Command conformance is the driver of the Go client: see clients/conformance.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"fastlane.example/fastlane"
	pb "fastlane.example/fastlane/v1"
)

// failed is the exit status of a driver after an error.
const failed = 70

type report struct {
	Job         *job       `json:"job"`
	ExitStatus  *int32     `json:"exit_status"`
	Cursor      string     `json:"cursor"`
	Gaps        []gap      `json:"gaps"`
	States      []pb.State `json:"states"`
	Executions  []string   `json:"executions"`
	Disconnects int        `json:"disconnects"`
	Error       *failure   `json:"error"`
}

type job struct {
	ID          string   `json:"id"`
	ExecutionID string   `json:"execution_id"`
	State       pb.State `json:"state"`
}

type gap struct {
	Source       pb.Source       `json:"source"`
	Offset       int64           `json:"offset"`
	MissingBytes *int64          `json:"missing_bytes"`
	Cause        pb.LogGap_Cause `json:"cause"`
}

type failure struct {
	Code       uint32            `json:"code"`
	Reason     string            `json:"reason"`
	Message    string            `json:"message"`
	Violations [][2]string       `json:"violations"`
	Metadata   map[string]string `json:"metadata"`
}

func main() {
	options, args := map[string]string{}, []string{}
	for _, word := range os.Args[2:] {
		name, value, _ := strings.Cut(word, "=")
		if name == "arg" {
			args = append(args, value)
		}
		options[name] = value
	}
	told := &report{}
	status, err := run(os.Args[1], options, args, told)
	var refused *fastlane.Error
	if errors.As(err, &refused) {
		told.Error = &failure{uint32(refused.Code), refused.Reason, refused.Message, nil, refused.Metadata}
		for _, each := range refused.Violations {
			told.Error.Violations = append(told.Error.Violations, [2]string{each.Field, each.Description})
		}
	} else if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err != nil {
		status = failed
	}
	text, err := json.Marshal(told)
	if err == nil {
		err = os.WriteFile(options["report"], text, 0o600)
	}
	if err != nil {
		panic(err)
	}
	os.Exit(status)
}

func run(operation string, options map[string]string, args []string, told *report) (int, error) {
	client, err := fastlane.New(options["address"], fastlane.Options{
		TLSCA:     options["tls_ca"],
		TLSCert:   options["tls_cert"],
		TLSKey:    options["tls_key"],
		Token:     options["token"],
		TokenFile: options["token_file"],
	})
	if err != nil {
		return 0, err
	}
	defer client.Close()
	if operation == "tail" {
		return tail(client, options, told)
	}
	ctx := context.Background()
	if seconds, err := strconv.ParseFloat(options["timeout_seconds"], 64); err == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds*float64(time.Second)))
		defer cancel()
	}
	var made *pb.Job
	switch operation {
	case "enqueue":
		made, err = client.Enqueue(ctx, &pb.EnqueueJobRequest{
			TaskId:    options["task"],
			Spec:      &pb.JobSpec{Image: options["image"], Args: args},
			RequestId: options["request_id"],
		})
	case "get":
		made, err = client.Get(ctx, options["job"])
	case "stop":
		made, err = client.Stop(ctx, options["job"], options["note"])
	}
	if err == nil {
		told.Job = &job{made.Id, made.GetExecution().GetId(), made.State}
	}
	return 0, err
}

func tail(client *fastlane.Client, options map[string]string, told *report) (int, error) {
	sources := []pb.Source{pb.Source_SOURCE_STDOUT, pb.Source_SOURCE_STDERR}
	var heartbeat *durationpb.Duration
	if seconds, err := strconv.ParseFloat(options["heartbeat_seconds"], 64); err == nil {
		heartbeat = durationpb.New(time.Duration(seconds * float64(time.Second)))
	}
	enough, _ := strconv.Atoi(options["stop_after_bytes"])
	ctx, text := context.Background(), options["text"] == "true"
	following := client.Tail(ctx, &pb.StreamExecutionLogsRequest{
		ExecutionId: options["execution"], Cursor: options["cursor"], Text: text, Sources: sources, HeartbeatInterval: heartbeat,
	})
	if options["job"] != "" {
		following = client.TailJob(ctx, &pb.StreamJobLogsRequest{
			JobId: options["job"], Cursor: options["cursor"], Text: text, Sources: sources, HeartbeatInterval: heartbeat,
		})
	}
	written, status := 0, 0
	var failed error
	following(func(message *fastlane.Message, err error) bool {
		if failed = err; err != nil {
			return false
		}
		for _, chunk := range message.Chunks {
			out, data := os.Stdout, chunk.Data
			if chunk.Source == pb.Source_SOURCE_STDERR {
				out = os.Stderr
			}
			if text {
				data = []byte(chunk.Text)
			}
			if _, failed = out.Write(data); failed != nil {
				return false
			}
			written += len(data)
		}
		switch event := message.Event.(type) {
		case *pb.LogEnd:
			status, told.ExitStatus = int(event.ExitStatus), &event.ExitStatus
		case *pb.JobLogEnd:
			status, told.ExitStatus = int(event.ExitStatus), &event.ExitStatus
		default:
			told.note(event)
		}
		told.Cursor = message.Cursor
		return enough == 0 || written < enough
	})
	return status, failed
}

// note adds an event that changes no exit status.
func (r *report) note(event any) {
	switch event := event.(type) {
	case *pb.LogGap:
		r.Gaps = append(r.Gaps, gap{event.Source, event.Offset, event.MissingBytes, event.Cause})
	case *pb.LogState:
		if len(r.States) == 0 || r.States[len(r.States)-1] != event.State {
			r.States = append(r.States, event.State)
		}
	case *pb.JobLogExecution:
		r.Executions = append(r.Executions, event.Execution.Id)
	case *fastlane.Error:
		r.Disconnects++
	}
}
