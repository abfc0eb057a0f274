package main

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// The layout of a record; fastlane_grpc/record/format.py describes it to the byte.
const (
	blockBytes                         = 65536
	blockHeaderBytes, frameHeaderBytes = 168, 16
	lengthAt, kindAt                   = 8, 10
	// A kind of frames: the last one of a complete record.
	trailer = 18
	// What the name of the FIFO of orders has after that of the record.
	ordersEnd = ".orders"
	// See recorder.c.
	hardStop = 44
)

// A record on the disk, which the recorder writes.
type record struct {
	file    *os.File
	path    string
	box     string
	changes *os.File
	pipes   *pipes
	// Has a value after the record was changed.
	changed chan struct{}
	// The offset up to which this process has punched out blocks.
	punched int64
}

func openRecord(path, box string, pipes *pipes) (*record, error) {
	if err := makeNames(path, box, pipes); err != nil {
		return nil, err
	}
	// Last, also for a relay that was killed before: a recorder that waits finds everything, or that it is too late.
	if err := os.Remove(filepath.Join(box, waitName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// For writing, too: blocks are punched out.
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	descriptor, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		file.Close()
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	changes := os.NewFile(uintptr(descriptor), "inotify")
	opened := &record{file: file, path: path, box: box, changes: changes, pipes: pipes, changed: make(chan struct{}, 1)}
	// The end of the recorder is told by IN_CLOSE_WRITE, its claim by IN_ATTRIB.
	const what = syscall.IN_MODIFY | syscall.IN_CLOSE_WRITE | syscall.IN_ATTRIB
	if _, err := syscall.InotifyAddWatch(descriptor, path, what); err != nil {
		opened.close()
		return nil, os.NewSyscallError("inotify_add_watch", err)
	}
	go opened.watch()
	return opened, nil
}

// makeNames makes the record and its second name. A recorder claims the record by removing the second one.
//
// A relay that was killed in between finds an empty record with one name. If no recorder has locked it, no command ran:
// the record gets its second name now.
func makeNames(path, box string, pipes *pipes) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	defer file.Close()
	found, err := file.Stat()
	if err != nil {
		return err
	}
	if found.Size() > 0 || found.Sys().(*syscall.Stat_t).Nlink > 1 || !isFree(file) {
		return nil
	}
	// For the user of any container, whatever the mask.
	if err := file.Chmod(0o666); err != nil {
		return err
	}
	// First, as the recorder opens them before it claims the record.
	if err := makeFIFO(path+ordersEnd, filepath.Join(box, "orders")); err != nil {
		return err
	}
	if err := pipes.make(box); err != nil {
		return err
	}
	return os.Link(path, filepath.Join(box, "log"))
}

// makeFIFO makes a FIFO for any user, and its second name.
func makeFIFO(path, second string) error {
	if err := syscall.Mkfifo(path, 0o666); err != nil && !errors.Is(err, os.ErrExist) {
		return os.NewSyscallError("mkfifo", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		return err
	}
	if err := os.Link(path, second); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// order writes an order for the recorder. It fails if no recorder has opened the FIFO.
func (its *record) order(number byte) error {
	// The mark by which the recorder obeys a hard stop. Nothing in the container can set it.
	if number == hardStop {
		if err := its.file.Chmod(0o600); err != nil {
			return err
		}
	}
	orders, err := os.OpenFile(its.path+ordersEnd, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer orders.Close()
	_, err = orders.Write([]byte{number})
	return err
}

// isFree says whether no recorder has locked the record.
func isFree(file *os.File) bool {
	descriptor := int(file.Fd())
	if syscall.Flock(descriptor, syscall.LOCK_SH|syscall.LOCK_NB) != nil {
		return false
	}
	return syscall.Flock(descriptor, syscall.LOCK_UN) == nil
}

func (its *record) close() {
	its.changes.Close()
	its.file.Close()
}

func (its *record) watch() {
	buffer := make([]byte, 4096)
	for {
		if _, err := its.changes.Read(buffer); err != nil {
			return
		}
		select {
		case its.changed <- struct{}{}:
		default:
		}
	}
}

// ended says whether the record was claimed, its recorder is gone, and nothing more is stored in it. It removes the box of a claimed record.
func (its *record) ended() bool {
	found, err := its.file.Stat()
	if err != nil {
		return false
	}
	claimed := found.Size() > 0 || found.Sys().(*syscall.Stat_t).Nlink < 2
	if !claimed {
		return false
	}
	// The command does not run before the box is gone. What a command left there is deleted with it.
	_ = os.RemoveAll(its.box)
	// The recorder has the lock from before its claim until its end. A record that was not begun has no output.
	return isFree(its.file) && (found.Size() == 0 || its.pipes.areSettled())
}

// piece returns what follows the offset, as far as it is whole: blocks after which another one has begun, then frames.
// A torn frame is cut off by the recorder, and another one takes its place: it is not sent.
//
// The piece begins behind the offset where blocks were punched out.
func (its *record) piece(offset int64, most int) (from int64, piece []byte, err error) {
	found, err := its.file.Stat()
	if err != nil {
		return 0, nil, err
	}
	size := found.Size()
	for len(piece) < most {
		at := offset + int64(len(piece))
		begin := at - at%blockBytes
		block := make([]byte, min(blockBytes, max(0, size-begin)))
		if _, err := its.file.ReadAt(block, begin); err != nil && !errors.Is(err, io.EOF) {
			return 0, nil, err
		}
		punched, err := its.isPunched(begin, size)
		if err != nil {
			return 0, nil, err
		}
		if punched {
			if len(piece) > 0 {
				break
			}
			offset = its.beyondHole(begin + blockBytes)
			continue
		}
		end, _ := lastWholeFrame(block)
		complete, err := its.isComplete(begin, size)
		if err != nil {
			return 0, nil, err
		}
		if complete {
			end = blockBytes
		}
		if begin+int64(end) <= at {
			break
		}
		piece = append(piece, block[at-begin:end]...)
		if !complete {
			break
		}
	}
	return offset, piece, nil
}

// isPunched says whether a block was punched out. Asked after the block was read: its header goes first.
func (its *record) isPunched(begin, size int64) (bool, error) {
	var magic [4]byte
	if size < begin+2*blockBytes {
		return false, nil
	}
	_, err := its.file.ReadAt(magic[:], begin)
	return magic == [4]byte{}, err
}

// isComplete says whether nothing is written to a block any more: a whole frame has followed in the next one.
func (its *record) isComplete(begin, size int64) (bool, error) {
	next := begin + blockBytes
	if size > next+blockBytes {
		return true, nil
	}
	head := make([]byte, blockHeaderBytes+frameHeaderBytes)
	if size < next+int64(len(head)) {
		return false, nil
	}
	if _, err := its.file.ReadAt(head, next); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	frame := head[blockHeaderBytes:]
	length := int64(binary.LittleEndian.Uint16(frame[lengthAt:]))
	return frame[kindAt] != 0 && size >= next+int64(len(head))+length, nil
}

// hasTrailer says whether the record is complete.
func hasTrailer(file *os.File) bool {
	found, err := file.Stat()
	if err != nil || found.Size() == 0 {
		return false
	}
	begin := (found.Size() - 1) / blockBytes * blockBytes
	block := make([]byte, found.Size()-begin)
	if _, err := file.ReadAt(block, begin); err != nil {
		return false
	}
	_, kind := lastWholeFrame(block)
	return kind == trailer
}

// lastWholeFrame returns the end and the kind of the last whole frame of a block; 0: there is none.
func lastWholeFrame(block []byte) (end int, kind byte) {
	for place := blockHeaderBytes; place+frameHeaderBytes <= len(block); {
		frame := block[place:]
		place += frameHeaderBytes + int(binary.LittleEndian.Uint16(frame[lengthAt:]))
		if frame[kindAt] == 0 || place > len(block) {
			break
		}
		end, kind = place, frame[kindAt]
	}
	return end, kind
}
