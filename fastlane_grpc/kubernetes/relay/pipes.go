package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The FIFOs that this program holds open for a recorder: the pipes of the job, and two of its own (see recorder.c).
var pipeNames = [...]string{"stdout", "stderr", "taken", "lost"}

const (
	// A pause between two looks whether the record was begun.
	beginPause = 100 * time.Millisecond
	// How often what a recorder left is stored, if the program that does it is killed.
	salvageTries = 5
)

// pipes holds the FIFOs of the job open, and reads none of them while the recorder lives. So a recorder that is killed
// loses no byte that is in them. When it is gone without a trailer, another process of it stores the rest.
type pipes struct {
	record, recorder string
	limit            int64
	files            [len(pipeNames)]*os.File
	// Closed when nothing more is stored in the record.
	settled chan struct{}
	// Whether the record, without a trailer, has everything, or says itself what is missing. Set before.
	complete bool
}

// holdPipes opens the FIFOs that an earlier relay made.
func holdPipes(given options) (*pipes, error) {
	its := &pipes{record: given.record, recorder: given.recorder, limit: given.limit}
	// What is to be masked is read by the recorder alone.
	if given.secrets {
		its.recorder = ""
	}
	// Without the record there may be some of them; the rest is made with it.
	if _, err := os.Lstat(its.path(pipeNames[len(pipeNames)-1])); err != nil || its.recorder == "" {
		return its, nil
	}
	return its, its.hold()
}

func (its *pipes) path(name string) string { return its.record + "." + name }

// make makes the FIFOs before a recorder may begin, and holds them.
func (its *pipes) make(box string) error {
	if its.recorder == "" {
		return nil
	}
	for _, name := range pipeNames {
		if err := makeFIFO(its.path(name), filepath.Join(box, name)); err != nil {
			return err
		}
	}
	return its.hold()
}

func (its *pipes) hold() error {
	if its.settled != nil {
		return nil
	}
	for number, name := range pipeNames {
		if its.files[number] != nil {
			continue
		}
		// Never for writing to the job's: they have to end with the job.
		how := os.O_RDONLY
		if number > 1 {
			how = os.O_RDWR
		}
		file, err := os.OpenFile(its.path(name), how|syscall.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		its.files[number] = file
	}
	record, err := os.OpenFile(its.record, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	found, err := record.Stat()
	if err != nil {
		return err
	}
	// Asked after they were opened: a recorder, or a process that stores what one left, has held them until now. Without
	// either the FIFOs are new, and what was in them went with an earlier relay.
	if found.Size() > 0 && isFree(record) {
		record.Close()
		return nil
	}
	its.settled = make(chan struct{})
	go its.await(record)
	return nil
}

// areSettled says whether nothing more is stored in the record, once its recorder is gone.
func (its *pipes) areSettled() bool {
	if its.settled == nil {
		return true
	}
	select {
	case <-its.settled:
		return true
	default:
		return false
	}
}

// await waits for the end of the recorder, and has stored what it left.
func (its *pipes) await(record *os.File) {
	defer close(its.settled)
	defer record.Close()
	for {
		// A record that is not empty was begun by a recorder, which has locked it before.
		if found, err := record.Stat(); err == nil && found.Size() > 0 {
			break
		}
		time.Sleep(beginPause)
	}
	for syscall.Flock(int(record.Fd()), syscall.LOCK_SH) == syscall.EINTR {
	}
	_ = syscall.Flock(int(record.Fd()), syscall.LOCK_UN)
	if hasTrailer(record) {
		return
	}
	for tries := 0; tries < salvageTries; tries++ {
		err := its.salvage(record)
		its.complete = err == nil
		if err == nil {
			return
		}
		fmt.Fprintln(os.Stderr, "relay: storing what a recorder left:", err)
		if exited := new(exec.ExitError); !errors.As(err, &exited) || exited.Exited() {
			return
		}
	}
}

// salvage stores what a recorder left in the FIFOs. It may be killed and called again.
//
// It hands over its own descriptors: a process that opened the names after the end of this one would find new FIFOs.
func (its *pipes) salvage(record *os.File) error {
	var words strings.Builder
	command := exec.Command(its.recorder, "--salvage", strconv.FormatInt(its.limit, 10))
	command.Stderr = &words
	command.ExtraFiles = append([]*os.File{record}, its.files[:]...)
	if err := command.Run(); err != nil {
		return fmt.Errorf("%w %s", err, strings.TrimSpace(words.String()))
	}
	return nil
}
