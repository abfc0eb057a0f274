package main

import (
	"errors"
	"os"
	"path/filepath"
)

// The files of a job that come from the server before its start. A try that breaks off leaves parts; the next one
// begins anew.
type files struct {
	box           string
	stdin, inputs *os.File
}

func newFiles(given options) (*files, error) {
	its := &files{box: given.box}
	if given.granted() {
		return its, nil
	}
	var err error
	if given.stdin != "" {
		if its.stdin, err = create(given.stdin); err != nil {
			return its, err
		}
	}
	if given.inputs {
		its.inputs, err = create(filepath.Join(given.box, inputsName))
	}
	if err == nil && given.outputs {
		err = makeOutputs(given)
	}
	return its, err
}

func create(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o444)
}

// makeOutputs makes the file for what the job keeps, and the second name by which the recorder opens it before it claims
// the record.
func makeOutputs(given options) error {
	path := given.record + outputsEnd
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	defer file.Close()
	// For the user of any container, whatever the mask.
	if err := file.Chmod(0o666); err != nil {
		return err
	}
	if err := os.Link(path, filepath.Join(given.box, "outputs")); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
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
	for _, file := range []*os.File{its.stdin, its.inputs} {
		if file == nil {
			continue
		}
		// Whatever the mask.
		if err := file.Chmod(0o444); err != nil {
			return err
		}
	}
	return nil
}

func (its *files) close() {
	for _, file := range []*os.File{its.stdin, its.inputs} {
		if file != nil {
			file.Close()
		}
	}
}
