//go:build go1.23

// Command fastlane-tail runs a command in a container on a fastlane server as if it ran here, for steps of CI systems: its
// output comes live, a signal stops the job, and the exit status is the job's.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"

	"fastlane.example/fastlane"
	pb "fastlane.example/fastlane/v1"
)

// Exit statuses of its own, as those of `fastlane run`.
const (
	exitFailed      = 1
	exitWrongUse    = 2
	exitUnavailable = 69
	exitInterrupted = 130
)

// stopFor is how long a stop is tried while the server is away.
const stopFor = 2 * time.Minute

func main() {
	options, err := parse(os.Args[1:], os.LookupEnv)
	if errors.Is(err, errHelp) {
		os.Exit(0)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "fastlane-tail: %v\n", err)
		os.Exit(exitWrongUse)
	}
	os.Exit(run(options))
}

func run(options *options) int {
	notes := newNotes(options)
	client, err := options.connect()
	if err != nil {
		notes.say("%v", err)
		return exitWrongUse
	}
	defer client.Close()
	if options.job != "" {
		// Somebody else's job: a signal ends this program alone.
		return follow(client, options.job, options, notes)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	job, interrupted, err := enqueued(client, options, signals)
	if err != nil {
		return notes.failed("", options, err)
	}
	notes.enqueued(job)
	for path, text := range map[string]string{options.idFile: job.Id, options.linkFile: notes.linkText()} {
		if path == "" || text == "" {
			continue
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			notes.say("%v", err)
		}
	}
	go stopOnSignal(client, job.Id, interrupted, signals, notes)
	return follow(client, job.Id, options, notes)
}

// enqueued returns the job, and the signal that came before its id was known: the job is stopped then, not left.
func enqueued(client *fastlane.Client, options *options, signals chan os.Signal) (*pb.Job, os.Signal, error) {
	ctx, cancel := context.WithTimeout(context.Background(), options.wait)
	defer cancel()
	type answer struct {
		job *pb.Job
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		job, err := client.Enqueue(ctx, options.request())
		answers <- answer{job, err}
	}()
	var first os.Signal
	for {
		select {
		case got := <-answers:
			return got.job, first, got.err
		case got := <-signals:
			if first != nil {
				os.Exit(exitInterrupted)
			}
			first = got
		}
	}
}

// stopOnSignal stops the job after the first signal. The second one ends this program alone.
func stopOnSignal(client *fastlane.Client, id string, first os.Signal, signals chan os.Signal, notes *notes) {
	if first == nil {
		first = <-signals
	}
	go func() {
		<-signals
		notes.say("left job %s, which was told to stop", id)
		os.Exit(exitInterrupted)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), stopFor)
	defer cancel()
	notes.say("%s: stopping job %s; a second signal leaves it", name(first), id)
	if _, err := client.Stop(ctx, id, name(first)+" in fastlane-tail"); err != nil {
		notes.say("cannot stop job %s: %v", id, err)
	}
}

func name(number os.Signal) string {
	names := map[os.Signal]string{os.Interrupt: "SIGINT", syscall.SIGTERM: "SIGTERM", syscall.SIGHUP: "SIGHUP"}
	return names[number]
}

// follow copies the output of all attempts, and returns the exit status of the job.
func follow(client *fastlane.Client, id string, options *options, notes *notes) int {
	request := &pb.StreamJobLogsRequest{JobId: id, Sources: []pb.Source{pb.Source_SOURCE_STDOUT, pb.Source_SOURCE_STDERR}}
	// The server that took the job is waited for without a limit.
	begin, reached, failures := time.Now(), options.job == "", 0
	for message, err := range client.TailJob(context.Background(), request) {
		if err != nil {
			return notes.failed("job "+id+": ", options, err)
		}
		if cut, is := message.Event.(*fastlane.Error); is {
			failures++
			if !reached && time.Since(begin) > options.wait {
				notes.failed("job "+id+": ", options, cut)
				return exitUnavailable
			}
			// A cut that heals at once is nobody's concern.
			if failures == 2 && !options.quiet {
				notes.say("the server at %s does not respond (%v); trying again", options.address, cut)
			}
			continue
		}
		reached, failures = true, 0
		for _, chunk := range message.Chunks {
			if err := notes.output(chunk); err != nil {
				notes.say("%v; job %s goes on", err, id)
				return exitFailed
			}
		}
		switch event := message.Event.(type) {
		case *pb.LogState:
			notes.state(event)
		case *pb.JobLogExecution:
			notes.execution(event)
		case *pb.LogGap:
			notes.gap(event)
		case *pb.JobLogEnd:
			notes.ended(event)
			return int(event.ExitStatus)
		}
	}
	return exitFailed
}

// failed says what ends this program, and returns its exit status.
func (n *notes) failed(what string, options *options, err error) int {
	var failure *fastlane.Error
	if !errors.As(err, &failure) || failure.Reason == "" && (failure.Code == codes.Unavailable || failure.Code == codes.DeadlineExceeded) {
		n.say("%sthe server at %s does not respond: %v", what, options.address, err)
		return exitUnavailable
	}
	n.say("%s%v", what, err)
	return exitFailed
}
