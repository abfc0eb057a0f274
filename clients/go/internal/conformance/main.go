// Command conformance is the driver of the Go client: see clients/conformance.md.
package main

import (
	"bufio"
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

// failed is the status of a call after an error.
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

// call is what one line asks for, and where the output goes.
type call struct {
	options map[string]string
	args    []string
	outputs map[string]*os.File
	told    report
}

func main() {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var words []string
		must(json.Unmarshal(lines.Bytes(), &words))
		call := &call{options: map[string]string{}, outputs: map[string]*os.File{}}
		for _, word := range words[1:] {
			name, value, _ := strings.Cut(word, "=")
			if name == "arg" {
				call.args = append(call.args, value)
			}
			call.options[name] = value
		}
		fmt.Println(call.report(words[0]))
	}
}

// report makes the call, writes its report and returns its status.
func (c *call) report(operation string) int {
	for _, name := range []string{"stdout", "stderr"} {
		file, err := os.OpenFile(c.options[name], os.O_WRONLY, 0)
		must(err)
		defer file.Close()
		c.outputs[name] = file
	}
	told := &c.told
	status, err := c.run(operation)
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
	must(err)
	must(os.WriteFile(c.options["report"], text, 0o600))
	return status
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (c *call) run(operation string) (int, error) {
	options := c.options
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
		return c.tail(client)
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
			Spec:      &pb.JobSpec{Image: options["image"], Args: c.args},
			RequestId: options["request_id"],
		})
	case "get":
		made, err = client.Get(ctx, options["job"])
	case "stop":
		made, err = client.Stop(ctx, options["job"], options["note"])
	}
	if err == nil {
		c.told.Job = &job{made.Id, made.GetExecution().GetId(), made.State}
	}
	return 0, err
}

func (c *call) tail(client *fastlane.Client) (int, error) {
	options, told := c.options, &c.told
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
			out, data := c.outputs["stdout"], chunk.Data
			if chunk.Source == pb.Source_SOURCE_STDERR {
				out = c.outputs["stderr"]
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
