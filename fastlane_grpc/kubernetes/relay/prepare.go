package main

import (
	"os"
	"path/filepath"
)

// prepare makes what the containers of a pod share: bin with the recorder, box for the second name of the record, in for
// the standard input of the job, and own for the record itself, which the container of the job does not see. With files
// the container of the job has this program, too.
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
	if withFiles {
		if err := install(program, filepath.Join(directory, "bin", "relay")); err != nil {
			return err
		}
	}
	return install(filepath.Join(filepath.Dir(program), "recorder"), filepath.Join(directory, "bin", "recorder"))
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
