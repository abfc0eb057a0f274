package main

import (
	"os"
	"path/filepath"
)

// The files of a job that come from the server before its start. A try that breaks off leaves parts; the next one
// begins anew.
type files struct {
	box   string
	stdin *os.File
}

func newFiles(given options) (*files, error) {
	its := &files{box: given.box}
	if given.stdin == "" || given.wants() == "" {
		return its, nil
	}
	var err error
	its.stdin, err = os.OpenFile(given.stdin, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o444)
	return its, err
}

// writeSecrets writes the file of secrets. Any user may read and change it: the recorder is the user of the job.
func (its *files) writeSecrets(content []byte) error {
	path := filepath.Join(its.box, "secrets")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	return os.Chmod(path, 0o666)
}

// complete notes that everything has come.
func (its *files) complete() error {
	if its.stdin == nil {
		return nil
	}
	// Whatever the mask.
	return its.stdin.Chmod(0o444)
}

func (its *files) close() {
	if its.stdin != nil {
		its.stdin.Close()
	}
}
