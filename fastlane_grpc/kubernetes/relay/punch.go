package main

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
)

const (
	// See fallocate(2) and lseek(2).
	keepSize, punchHole = 1, 2
	seekData            = 3
	// Blocks at the end that stay: a process that goes on after a recorder that was killed reads one of them.
	newestBlocks = 2
)

// punching says whether blocks that the server has on its disk are punched out of records.
//
// FASTLANE_RELAY_PUNCHES is set for pods whose recorder never reads a block again that is not one of the newest.
type punching struct {
	is atomic.Bool
	// Whether a failure was told.
	isTold atomic.Bool
}

func newPunching() *punching {
	its := new(punching)
	its.is.Store(os.Getenv("FASTLANE_RELAY_PUNCHES") != "")
	return its
}

// punch frees the blocks before an offset up to which the server has everything on its disk.
//
// A punched block reads as zeros from its header on, as one that the recorder punched out. Called by one goroutine at a
// time.
func (its *record) punch(durable int64, allowed *punching) {
	found, err := its.file.Stat()
	if err != nil || !allowed.is.Load() {
		return
	}
	newest := (found.Size() - 1) / blockBytes
	end := min(durable/blockBytes, newest+1-newestBlocks) * blockBytes
	if end <= its.punched {
		return
	}
	switch err := its.free(its.punched, end); {
	case err == nil:
		its.punched = end
	case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS), errors.Is(err, syscall.EPERM):
		// A file system without holes. The log does not need them: the record keeps its room until the end.
		allowed.is.Store(false)
	case !allowed.isTold.Swap(true):
		fmt.Fprintln(os.Stderr, "relay: punching out what was copied, trying again:", err)
	}
}

// free punches out the bytes between two offsets. The descriptor is not closed meanwhile, so it is that of the record.
func (its *record) free(begin, end int64) error {
	connection, err := its.file.SyscallConn()
	if err != nil {
		return err
	}
	called := connection.Control(func(descriptor uintptr) {
		for err = syscall.EINTR; err == syscall.EINTR; {
			err = syscall.Fallocate(int(descriptor), keepSize|punchHole, begin, end-begin)
		}
	})
	if called != nil {
		return called
	}
	return os.NewSyscallError("fallocate", err)
}

// keptFrom returns the offset before which all blocks of a record were punched out.
func keptFrom(path string) int64 {
	file, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer file.Close()
	return (&record{file: file}).beyondHole(0)
}

// beyondHole returns where to go on after a punched block: at the next block that may have something in it.
func (its *record) beyondHole(offset int64) int64 {
	data, err := its.file.Seek(offset, seekData)
	if err != nil {
		return offset
	}
	return max(offset, data-data%blockBytes)
}
