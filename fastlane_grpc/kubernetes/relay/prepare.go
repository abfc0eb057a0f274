package main

import (
	"os"
	"path/filepath"
	"time"
)

const (
	// The recorder in the directory that the containers of a pod share. It is put there last of all.
	sharedRecorder = "bin/recorder"
	// The file in the box that is there until the start is granted.
	waitName = "wait"
	// A pause between two looks at a file that another container makes or removes.
	filePause = 5 * time.Millisecond
)

// awaitPrepared waits until the container of the job can be started. Its node calls this in the container of the relay.
func awaitPrepared(directory string) {
	for {
		if _, err := os.Lstat(filepath.Join(directory, sharedRecorder)); err == nil {
			return
		}
		time.Sleep(filePause)
	}
}

// awaitStart waits until the start is granted, or its box is gone.
func awaitStart(box string) {
	for {
		if _, err := os.Lstat(filepath.Join(box, waitName)); err != nil {
			return
		}
		time.Sleep(filePause)
	}
}

// prepare makes what the containers of a pod share: bin with the recorder, box for the second name of the record, in for
// the standard input of the job, and own for the record itself, which the container of the job does not see. With files
// the container of the job has this program, too. A relay that was killed does it again.
func prepare(directory string, withFiles bool) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	for name, mode := range map[string]os.FileMode{"bin": 0o755, "box": 0o777, "in": 0o755, "own": 0o700} {
		path := filepath.Join(directory, name)
		if err := os.MkdirAll(path, mode); err != nil {
			return err
		}
		// Whatever the mask.
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(directory, "box", waitName), nil, 0o444); err != nil {
		return err
	}
	if withFiles {
		if err := install(program, filepath.Join(directory, "bin", "relay")); err != nil {
			return err
		}
	}
	return install(filepath.Join(filepath.Dir(program), "recorder"), filepath.Join(directory, sharedRecorder))
}

// install copies a program.
func install(program, path string) error {
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", content, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(path+".new", 0o755); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
