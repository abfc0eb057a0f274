package main

import (
	"os"
	"path/filepath"
)

// prepare makes what the containers of a pod share: bin with the recorder, box for the second name of the record, in for
// the standard input of the job, and own for the record itself, which the container of the job does not see.
func prepare(directory string) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	recorder, err := os.ReadFile(filepath.Join(filepath.Dir(program), "recorder"))
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
	path := filepath.Join(directory, "bin", "recorder")
	if err := os.WriteFile(path+".new", recorder, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(path+".new", 0o755); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
