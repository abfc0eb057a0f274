//go:build go1.23

// Command tail runs a command in a container as if it ran here: its output comes live, and the exit status is
// the job's. With -job it follows a job that is there already.
package main

import (
	"cmp"
	"context"
	"flag"
	"log"
	"os"
	"os/signal"

	"fastlane.example/fastlane"
	pb "fastlane.example/fastlane/v1"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("tail: ")
	address := flag.String("address", cmp.Or(os.Getenv("FASTLANE_ADDRESS"), "127.0.0.1:7020"), "the `HOST:PORT` of the server")
	task := flag.String("task", "tail", "the task `NAME` of the job")
	id := flag.String("job", "", "follow the job of this `ID` instead of running IMAGE [WORD...]")
	flag.Parse()
	if (flag.NArg() == 0) == (*id == "") {
		log.Print("give either an image or -job")
		flag.Usage()
		os.Exit(2)
	}
	client, err := fastlane.New(*address, fastlane.Options{})
	check(err)
	if *id == "" {
		spec := &pb.JobSpec{Image: flag.Arg(0), Args: flag.Args()[1:]}
		job, err := client.Enqueue(context.Background(), &pb.EnqueueJobRequest{TaskId: *task, Spec: spec})
		check(err)
		*id = job.Id
		// The first Ctrl-C stops the job, while its output goes on; the second one ends this program alone.
		interrupted, reset := signal.NotifyContext(context.Background(), os.Interrupt)
		context.AfterFunc(interrupted, func() { reset(); _, err := client.Stop(context.Background(), *id, "Ctrl-C"); check(err) })
	}
	out := map[pb.Source]*os.File{pb.Source_SOURCE_STDOUT: os.Stdout, pb.Source_SOURCE_STDERR: os.Stderr}
	request := &pb.StreamJobLogsRequest{JobId: *id, Sources: []pb.Source{pb.Source_SOURCE_STDOUT, pb.Source_SOURCE_STDERR}}
	for message, err := range client.TailJob(context.Background(), request) {
		check(err)
		for _, chunk := range message.Chunks {
			if file, known := out[chunk.Source]; known {
				_, err := file.Write(chunk.Data)
				check(err)
			}
		}
		switch event := message.Event.(type) {
		case *pb.LogGap:
			log.Printf("bytes of %v are missing here (%v)", event.Source, event.Cause)
		case *pb.JobLogEnd:
			os.Exit(int(event.ExitStatus))
		}
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
