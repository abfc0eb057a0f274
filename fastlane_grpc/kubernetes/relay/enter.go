package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// The exit status of a recorder that could not begin; see recorder.c.
	cannotBegin = 118
	// The files in the box with the inputs of the job, and with the reason why they could not be written.
	inputsName, failureName = "inputs", "failure"
)

// Capabilities that the inputs of a job and the change to its user need.
var capabilities = map[string]int{
	"CHOWN": unix.CAP_CHOWN, "DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "FOWNER": unix.CAP_FOWNER,
	"FSETID": unix.CAP_FSETID, "SETGID": unix.CAP_SETGID, "SETUID": unix.CAP_SETUID,
	"SETPCAP": unix.CAP_SETPCAP,
}

// enter writes the inputs of a job into its container, as PID 1 and root. Then it becomes the recorder, with the user
// and the capabilities of the job. A failure is told to the relay by a file in the box, which nobody has claimed yet.
func enter(words []string) error {
	var user string
	var keepHome bool
	var dropped []int
	set := flag.NewFlagSet("enter", flag.ContinueOnError)
	set.StringVar(&user, "user", "", "user of the job, as USER or USER:GROUP, by name or number")
	set.BoolVar(&keepHome, "keep-home", false, "the job has its own HOME")
	set.Func("cap-drop", "capability that the job does not have", func(name string) error {
		number, known := capabilities[name]
		if !known {
			return errors.New("no such capability here")
		}
		dropped = append(dropped, number)
		return nil
	})
	if err := set.Parse(words); err != nil {
		return err
	}
	if set.NArg() < 2 {
		return errors.New("enter needs BOX and the command of the recorder")
	}
	box, command := set.Arg(0), set.Args()[1:]
	// Rights are those of a thread, and this one becomes the recorder.
	runtime.LockOSThread()
	// The memory is that of the job, whose limit may be small.
	debug.SetGCPercent(20)
	err := becomeRecorder(box, user, keepHome, dropped, command)
	if tell := os.WriteFile(filepath.Join(box, failureName), []byte(err.Error()), 0o600); tell != nil {
		fmt.Fprintln(os.Stderr, "relay:", tell)
	}
	fmt.Fprintln(os.Stderr, "relay:", err)
	os.Exit(cannotBegin)
	return nil
}

// becomeRecorder does not return, unless it fails.
func becomeRecorder(box, user string, keepHome bool, dropped []int, command []string) error {
	// As the engine has set it, before any input came.
	home := homeOfRoot()
	awaitStart(box)
	archive, err := os.Open(filepath.Join(box, inputsName))
	if err != nil {
		return err
	}
	if err := unpack(archive, "/"); err != nil {
		return err
	}
	archive.Close()
	for _, number := range dropped {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(number), 0, 0, 0); err != nil {
			return fmt.Errorf("a capability cannot be dropped: %w", err)
		}
	}
	if user != "" {
		identity, err := identityOf(user)
		if err != nil {
			return err
		}
		if err := identity.take(); err != nil {
			return fmt.Errorf("it cannot become the user %s: %w", user, err)
		}
		if !keepHome && os.Getenv("HOME") == home {
			os.Setenv("HOME", identity.home)
		}
	}
	if err := drop(dropped); err != nil {
		return fmt.Errorf("a capability cannot be dropped: %w", err)
	}
	return syscall.Exec(command[0], command, os.Environ())
}

// drop takes capabilities from this thread. A user that is not root has none any more.
func drop(numbers []int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	for _, number := range numbers {
		bit := ^(uint32(1) << number)
		data[0].Effective &= bit
		data[0].Permitted &= bit
		data[0].Inheritable &= bit
	}
	return unix.Capset(&header, &data[0])
}
