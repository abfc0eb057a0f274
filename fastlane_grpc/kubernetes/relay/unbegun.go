package main

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"syscall"
)

const (
	// In the place of an offset: no command has run, and none will. The reason follows, if one is known.
	neverBegan = orderDone - 2
	// Of a reason.
	mostReasonBytes = 4096
)

// leaveUnwanted ends this program when its node tells it to and no start was granted: there is nothing to send.
func leaveUnwanted(told context.Context, record string) {
	<-told.Done()
	if _, err := os.Lstat(record); os.IsNotExist(err) {
		os.Exit(0)
	}
}

// revoke takes the second name of a record away, by which a recorder would claim it. It says whether no recorder has:
// only one of the two can remove it.
func (its *record) revoke() bool {
	found, err := its.file.Stat()
	if err != nil || found.Size() > 0 || found.Sys().(*syscall.Stat_t).Nlink < 2 {
		return false
	}
	return os.Remove(filepath.Join(its.box, "log")) == nil
}

// unbegun returns the message that no command has run, with the reason that `enter` has left.
func unbegun(box string) []byte {
	reason, err := os.ReadFile(filepath.Join(box, failureName))
	if err != nil {
		reason = nil
	}
	return append(binary.LittleEndian.AppendUint64(nil, neverBegan), reason[:min(len(reason), mostReasonBytes)]...)
}
