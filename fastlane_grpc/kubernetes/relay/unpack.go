package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

const copyBytes = 1 << 18

// unpack unpacks an archive at a root, as an engine does for a container: parents that are missing are made, a file
// takes the place of another one, and no directory that of a file, or a file that of a directory. Modes, owners and
// times are those of the entries.
func unpack(archive io.Reader, root string) error {
	reader, buffer := tar.NewReader(archive), make([]byte, copyBytes)
	var directories []*tar.Header
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("their archive is damaged: %w", err)
		}
		place := filepath.Join(root, header.Name)
		if err := unpackEntry(header, reader, place, root, buffer); err != nil {
			return fmt.Errorf("%s cannot be written: %w", place, err)
		}
		if header.Typeflag == tar.TypeDir {
			directories = append(directories, header)
		}
	}
	// Their entries have changed them meanwhile.
	for _, header := range directories {
		if err := setTime(filepath.Join(root, header.Name), header); err != nil {
			return err
		}
	}
	return nil
}

func unpackEntry(header *tar.Header, content io.Reader, place, root string, buffer []byte) error {
	if err := os.MkdirAll(filepath.Dir(place), 0o755); err != nil {
		return err
	}
	found, err := os.Lstat(place)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	isThere := err == nil
	if isThere && found.IsDir() != (header.Typeflag == tar.TypeDir) {
		return errors.New("a directory and a file have this name")
	}
	if isThere && !found.IsDir() {
		if err := os.Remove(place); err != nil {
			return err
		}
	}
	switch header.Typeflag {
	case tar.TypeDir:
		if !isThere {
			err = os.Mkdir(place, 0o700)
		} else {
			err = nil
		}
	case tar.TypeReg:
		err = writeFile(place, content, buffer)
	case tar.TypeSymlink:
		err = os.Symlink(header.Linkname, place)
	case tar.TypeLink:
		// Its first name has set everything.
		return os.Link(filepath.Join(root, header.Linkname), place)
	default:
		err = fmt.Errorf("an entry of type %q", header.Typeflag)
	}
	if err != nil {
		return err
	}
	if err := os.Lchown(place, header.Uid, header.Gid); err != nil {
		return err
	}
	if header.Typeflag != tar.TypeSymlink {
		// After the owner, whose change takes the setuid bit. Not os.Chmod, which has other bits for that.
		if err := syscall.Chmod(place, uint32(header.Mode&0o7777)); err != nil {
			return err
		}
	}
	if header.Typeflag == tar.TypeDir {
		return nil
	}
	return setTime(place, header)
}

func writeFile(place string, content io.Reader, buffer []byte) error {
	file, err := os.OpenFile(place, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	// Hidden, as the file would read by itself, in pieces of another size.
	_, err = io.CopyBuffer(struct{ io.Writer }{file}, content, buffer)
	return errors.Join(err, file.Close())
}

func setTime(place string, header *tar.Header) error {
	time, err := unix.TimeToTimespec(header.ModTime)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, place, []unix.Timespec{time, time}, unix.AT_SYMLINK_NOFOLLOW)
}
