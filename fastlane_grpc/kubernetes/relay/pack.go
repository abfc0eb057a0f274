package main

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// The end of the file with the outputs of a job; a file without it is not whole. See capture/relayed_outputs.py.
	packedEnd = "fastlane"
	// Names of a directory that are read at a time: it may have any number.
	namesAtOnce = 1000
)

// Why there are no outputs; see OutputsFault.
const (
	tooLarge    = "too_large"
	noRoom      = "no_room"
	unavailable = "unavailable"
)

// The place of the archive of a path in the file.
type packed struct {
	Begin int64 `json:"begin"`
	Size  int64 `json:"size"`
}

// What is behind all archives. A path that the container does not have is null.
type index struct {
	Paths  []*packed `json:"paths"`
	Fault  string    `json:"fault,omitempty"`
	Detail string    `json:"detail,omitempty"`
}

var errTooLarge = errors.New("the outputs are too large")

// pack writes what a job keeps to standard output, a file: MOST PATH...
//
// It runs in the container of the job when its command has ended, and all other processes of the container with it.
func pack(words []string) error {
	if len(words) < 2 {
		return errors.New("pack needs a number of bytes and paths")
	}
	most, err := strconv.ParseInt(words[0], 10, 64)
	if err != nil {
		return err
	}
	target := newPackedFile(os.Stdout, most)
	its := index{}
	for _, path := range words[1:] {
		place, err := target.pack(path)
		if err != nil {
			return target.giveUp(err)
		}
		its.Paths = append(its.Paths, place)
	}
	if err := target.finish(its); err != nil {
		return target.giveUp(err)
	}
	return nil
}

// The file that is written: archives, the index as JSON, its size, the SHA-256 of all that, and the end.
type packedFile struct {
	file   *os.File
	buffer *bufio.Writer
	sum    hash.Hash
	size   int64
	most   int64
	links  map[[2]uint64]string
}

func newPackedFile(file *os.File, most int64) *packedFile {
	return &packedFile{file: file, buffer: bufio.NewWriterSize(file, copyBytes), sum: sha256.New(), most: most}
}

func (its *packedFile) Write(data []byte) (int, error) {
	if its.size+int64(len(data)) > its.most {
		return 0, errTooLarge
	}
	n, err := its.buffer.Write(data)
	its.sum.Write(data[:n])
	its.size += int64(n)
	return n, err
}

// pack writes the archive of a path, as an engine does: names begin with the last name of the path, which itself is not
// followed if it is a link. It returns nil if there is no such path.
func (its *packedFile) pack(path string) (*packed, error) {
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	begin := its.size
	its.links = map[[2]uint64]string{}
	archive := tar.NewWriter(its)
	if err := its.add(archive, path, filepath.Base(path)); err != nil {
		return nil, err
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	return &packed{begin, its.size - begin}, nil
}

// add writes the entries of a path. Devices, pipes and sockets are left out.
func (its *packedFile) add(archive *tar.Writer, path, name string) error {
	found, err := os.Lstat(path)
	if err != nil {
		return err
	}
	state := found.Sys().(*syscall.Stat_t)
	header := &tar.Header{
		Name: name, Mode: int64(state.Mode & 0o7777), Uid: int(state.Uid), Gid: int(state.Gid),
		// As archives of an engine have it.
		ModTime: found.ModTime().Truncate(time.Second), Format: tar.FormatPAX,
	}
	switch state.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		header.Typeflag, header.Name = tar.TypeDir, name+"/"
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		return its.addBelow(archive, path, name)
	case syscall.S_IFLNK:
		header.Typeflag = tar.TypeSymlink
		if header.Linkname, err = os.Readlink(path); err != nil {
			return err
		}
		return archive.WriteHeader(header)
	case syscall.S_IFREG:
		file := [2]uint64{uint64(state.Dev), state.Ino}
		if first, isThere := its.links[file]; isThere {
			header.Typeflag, header.Linkname = tar.TypeLink, first
			return archive.WriteHeader(header)
		}
		if state.Nlink > 1 {
			its.links[file] = name
		}
		header.Typeflag, header.Size = tar.TypeReg, state.Size
		return its.addFile(archive, path, header)
	}
	return nil
}

func (its *packedFile) addFile(archive *tar.Writer, path string, header *tar.Header) error {
	// A file with holes may claim any size: nothing of it is read.
	if its.size+header.Size > its.most {
		return errTooLarge
	}
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	copied, err := io.CopyN(archive, file, header.Size)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%s has %d bytes, and not %d", path, copied, header.Size)
	}
	return err
}

func (its *packedFile) addBelow(archive *tar.Writer, path, name string) error {
	if isOfKernel(path) {
		return nil
	}
	directory, err := os.Open(path)
	if err != nil {
		return err
	}
	defer directory.Close()
	for {
		names, err := directory.Readdirnames(namesAtOnce)
		for _, each := range names {
			if err := its.add(archive, filepath.Join(path, each), name+"/"+each); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// isOfKernel says whether a directory shows what the kernel knows, and no files of the container: an ended container
// has none of it.
func isOfKernel(path string) bool {
	var system unix.Statfs_t
	if unix.Statfs(path, &system) != nil {
		return false
	}
	switch system.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEVPTS_SUPER_MAGIC:
		return true
	}
	return path == "/.fastlane"
}

// finish writes what follows the archives. Then the file is whole.
func (its *packedFile) finish(what index) error {
	words, err := json.Marshal(what)
	if err != nil {
		return err
	}
	// Not limited: it is small, and says if there is too much.
	its.most = 1 << 62
	if _, err := its.Write(words); err != nil {
		return err
	}
	if _, err := its.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(words)))); err != nil {
		return err
	}
	if _, err := its.Write(append(its.sum.Sum(nil), packedEnd...)); err != nil {
		return err
	}
	return its.buffer.Flush()
}

// giveUp keeps nothing but the reason.
func (its *packedFile) giveUp(why error) error {
	what := index{Fault: unavailable, Detail: why.Error()}
	// The reason first, as a path may be long.
	var of *os.PathError
	if errors.As(why, &of) {
		what.Detail = of.Err.Error() + ": " + of.Path
	}
	switch {
	case errors.Is(why, errTooLarge):
		what.Fault = tooLarge
	case errors.Is(why, syscall.ENOSPC) || errors.Is(why, syscall.EDQUOT) || errors.Is(why, syscall.EFBIG):
		what.Fault = noRoom
	}
	if err := its.file.Truncate(0); err != nil {
		return err
	}
	if _, err := its.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return newPackedFile(its.file, its.most).finish(what)
}
