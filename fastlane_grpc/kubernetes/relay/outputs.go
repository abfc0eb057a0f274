package main

import (
	"encoding/binary"
	"errors"
	"io"
	"os"

	"google.golang.org/grpc"
)

const (
	// What the name of the file with the outputs has after that of the record.
	outputsEnd = ".outputs"
	// In the place of an offset: a piece of that file, after the offset there.
	outputsPiece = orderDone - 1
)

// sendOutputs sends what a job has kept, from an offset on, if all of it is there.
func sendOutputs(stream grpc.ClientStream, path string, offset int64) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	size, err := sizeOfWhole(file)
	if err != nil {
		return err
	}
	for piece := make([]byte, pieceBytes); offset < size; {
		n, err := file.ReadAt(piece[:min(pieceBytes, size-offset)], offset)
		if n == 0 && err != nil {
			return err
		}
		message := binary.LittleEndian.AppendUint64(nil, outputsPiece)
		message = binary.LittleEndian.AppendUint64(message, uint64(offset))
		message = append(message, piece[:n]...)
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
		offset += int64(n)
	}
	return nil
}

// sizeOfWhole returns the size of the file; 0 if it has no end, as what wrote it was killed.
func sizeOfWhole(file *os.File) (int64, error) {
	found, err := file.Stat()
	if err != nil {
		return 0, err
	}
	end := make([]byte, len(packedEnd))
	if found.Size() < int64(len(end)) {
		return 0, nil
	}
	if _, err := file.ReadAt(end, found.Size()-int64(len(end))); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if string(end) != packedEnd {
		return 0, nil
	}
	return found.Size(), nil
}
