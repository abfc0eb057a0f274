// Relay copies the record of one execution, byte for byte, to the server, while the recorder writes it.
//
//	relay --execution ID --server ADDRESS [--shared DIRECTORY [--files]] [--secrets] [--stdin FILE] [--inputs] [--outputs]
//	      [--account FILE] [--recorder FILE [--limit BYTES]] [--stay] RECORD BOX
//	relay prepared DIRECTORY     ends with 0 once the container of the job can be started
//	relay enter [--user USER] [--keep-home] [--cap-drop NAME]... BOX RECORDER...
//	                             writes the inputs of the job into its container, and becomes the recorder
//	relay pack MOST PATH...      writes what the job keeps to standard output
//
// With --shared the relay first puts the recorder, which is beside this program, and an empty box into the directory that
// the containers of the pod share; with --files also this program, for enter and pack. BOX/wait is there until the start
// is granted: the container of the job may be started before that, and then waits for it.
//
// FASTLANE_RELAY_TOKEN is the token of the execution. FASTLANE_RELAY_CA has the certificates, in PEM, by which the relay
// knows the server; without it the connection is not encrypted. RECORD is a file that the relay makes when the server has granted
// the start; its second name, BOX/log, is the one that the recorder claims. So without a grant no command runs. Once
// the record is claimed, the relay removes BOX, as a server does for a recorder on its own machine.
//
// With --secrets the server sends a file of secrets, which becomes BOX/secrets, and with --stdin the standard input of
// the job, which becomes FILE. With --inputs it sends the archive of its inputs, BOX/inputs, and with --outputs it gets
// what the recorder has left in RECORD.outputs, or BOX/outputs. Everything is whole before the start. --account names the token of the pod's service account, by
// which the server knows that the relay is in the pod. The recorder takes orders by the FIFO BOX/orders.
//
// With --recorder the relay makes the pipes of the job, unless it gets secrets, and holds them open. If the recorder is
// killed, this program stores what is left in them, in a record with the limit of --limit (see pipes.go).
//
// The protocol is one call, a stream in both directions (see fastlane_grpc/rpc/relay.py). The server says first up to
// which offset it has the file, and the relay sends what follows. When the recorder has ended and everything is sent,
// the relay says so; the server stores the file safely and says its size. Only then the relay ends, with 0. A
// connection that breaks is made again, and the copy goes on at the server's offset.
//
// While the relay copies, the server says up to where it has the record on its disk, and the relay punches out the blocks
// before that (see punch.go). So the node keeps what is not safe elsewhere, and little else.
//
// The record is marked as copied then, by its execute bit for others, for a recorder that waits for that. It is marked,
// too, if the server wants nothing more of it. With --stay the relay ends only when it is told to, as a node would start
// it again while the recorder has not seen the mark.
//
// Exit status 3: the server refuses for good, and says why on stderr.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	method = "/fastlane.relay.v1.RelayService/Copy"
	// The pauses between two connections grow from the first to the second.
	firstPause, longestPause = 100 * time.Millisecond, 5 * time.Second
	// A pause between two looks at the record, in case the kernel tells of no change.
	lookPause = time.Second
	// The largest piece of the record in one message.
	pieceBytes = 4 * blockBytes
	refused    = 3
	// In the place of an offset.
	orderDone = math.MaxUint64
	complete  = orderDone - 3
	// In the place of a signal: to keep the recorder from its beginning.
	revokeOrder = 0
)

// rawCodec passes messages as they are.
type rawCodec struct{}

func (rawCodec) Marshal(message any) ([]byte, error) { return *message.(*[]byte), nil }
func (rawCodec) Unmarshal(data []byte, message any) error {
	*message.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (rawCodec) Name() string { return "raw" }

type options struct {
	execution, server, authorities, token string
	shared                                string
	files, secrets                        bool
	stdin, account, recorder              string
	inputs, outputs                       bool
	limit                                 int64
	record, box                           string
	stay                                  bool
}

// granted says whether the start was granted before.
func (its options) granted() bool {
	_, err := os.Lstat(its.record)
	return err == nil
}

// wants returns what the server has to send before the start; nothing once the start was granted.
func (its options) wants() string {
	if its.granted() {
		return ""
	}
	var wants []string
	if its.secrets {
		wants = append(wants, "secrets")
	}
	if its.stdin != "" {
		wants = append(wants, "stdin")
	}
	if its.inputs {
		wants = append(wants, "inputs")
	}
	return strings.Join(wants, ",")
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "prepared" {
		awaitPrepared(os.Args[2])
		exit(nil)
	}
	if len(os.Args) >= 3 && os.Args[1] == "enter" {
		exit(enter(os.Args[2:]))
	}
	if len(os.Args) >= 3 && os.Args[1] == "pack" {
		exit(pack(os.Args[2:]))
	}
	var given options
	flag.StringVar(&given.execution, "execution", "", "id of the execution")
	flag.StringVar(&given.server, "server", "", "address of the server's port for relays")
	flag.StringVar(&given.shared, "shared", "", "directory that the containers of the pod share")
	flag.BoolVar(&given.files, "files", false, "the container of the job needs this program, too")
	flag.BoolVar(&given.secrets, "secrets", false, "the job gets secrets from the server")
	flag.StringVar(&given.stdin, "stdin", "", "file that the standard input of the job is written to")
	flag.BoolVar(&given.inputs, "inputs", false, "the job gets inputs from the server")
	flag.BoolVar(&given.outputs, "outputs", false, "the server gets what the job keeps")
	flag.StringVar(&given.account, "account", "", "file with the token of the pod's service account")
	flag.StringVar(&given.recorder, "recorder", "", "program that stores what a recorder left when it was killed")
	flag.Int64Var(&given.limit, "limit", 0, "size limit of the record in bytes; 0: none")
	flag.BoolVar(&given.stay, "stay", false, "end only by SIGTERM, once everything is copied")
	flag.Parse()
	given.token, given.authorities = os.Getenv("FASTLANE_RELAY_TOKEN"), os.Getenv("FASTLANE_RELAY_CA")
	if flag.NArg() != 2 || given.execution == "" || given.server == "" || given.token == "" {
		fmt.Fprintln(os.Stderr, "relay: needs --execution, --server, FASTLANE_RELAY_TOKEN, RECORD and BOX")
		os.Exit(2)
	}
	given.record, given.box = flag.Arg(0), flag.Arg(1)
	if given.shared != "" && !given.granted() {
		if err := prepare(given.shared, given.files); err != nil {
			exit(err)
		}
	}
	// A node that ends a pod tells every container of it. The relay has to send what the others still print.
	told, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	go leaveUnwanted(told, given.record)
	connection, err := connect(given)
	if err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
		os.Exit(2)
	}
	allowed := newPunching()
	pipes, err := holdPipes(given)
	if err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
		os.Exit(2)
	}
	for pause := firstPause; ; {
		began, err := copyRecord(connection, given, pipes, allowed, told)
		if err == nil {
			end(given, told, 0)
		}
		fmt.Fprintln(os.Stderr, "relay:", err)
		if isFinal(err) {
			end(given, told, refused)
		}
		if began {
			pause = firstPause
		}
		time.Sleep(pause)
		pause = min(2*pause, longestPause)
	}
}

// end marks the record, if there is one, and ends this program; with --stay when it was told to.
func end(given options, told context.Context, code int) {
	err := os.Chmod(given.record, 0o667)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		fmt.Fprintln(os.Stderr, "relay:", err)
	}
	if given.stay {
		<-told.Done()
	}
	os.Exit(code)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func connect(given options) (*grpc.ClientConn, error) {
	security := insecure.NewCredentials()
	if given.authorities != "" {
		authorities := x509.NewCertPool()
		if !authorities.AppendCertsFromPEM([]byte(given.authorities)) {
			return nil, errors.New("FASTLANE_RELAY_CA has no certificate")
		}
		security = credentials.NewTLS(&tls.Config{RootCAs: authorities, MinVersion: tls.VersionTLS12})
	}
	return grpc.NewClient(
		"passthrough:///"+given.server,
		grpc.WithTransportCredentials(security),
		// By default the pauses of gRPC grow to two minutes, in which a server that is back would wait for the output.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstPause, Multiplier: 2, Jitter: 0.2, MaxDelay: longestPause},
			MinConnectTimeout: longestPause,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})),
	)
}

// isFinal says whether the server would refuse another try, too.
func isFinal(err error) bool {
	switch status.Code(err) {
	case codes.Unauthenticated, codes.NotFound, codes.FailedPrecondition, codes.InvalidArgument:
		return true
	}
	return false
}

// copyRecord copies the record over one call. It says whether the server answered.
func copyRecord(
	connection *grpc.ClientConn, given options, pipes *pipes, allowed *punching, told context.Context,
) (began bool, err error) {
	wants, account := given.wants(), []byte(nil)
	if wants != "" && given.account != "" {
		// Read anew: the node renews it.
		if account, err = os.ReadFile(given.account); err != nil {
			return false, err
		}
	}
	context, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(),
		"fastlane-execution", given.execution, "fastlane-token", given.token, "fastlane-wants", wants,
		"fastlane-account", strings.TrimSpace(string(account)), "fastlane-outputs", strconv.FormatBool(given.outputs),
		"fastlane-punches", strconv.FormatBool(allowed.is.Load()),
		"fastlane-kept-from", strconv.FormatInt(keptFrom(given.record), 10)))
	defer cancel()
	stream, err := connection.NewStream(context, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return false, err
	}
	offset, kept, err := receiveFiles(stream, given)
	if err != nil {
		return false, err
	}
	record, err := openRecord(given.record, given.box, pipes)
	if err != nil {
		return true, err
	}
	defer record.close()
	// The stream breaks while the relay waits for output, too.
	received := make(chan answer, 1)
	// Messages are sent by one goroutine at a time. A server sends its next order after the answer to the last.
	done, revocations := make(chan []byte, 16), make(chan struct{}, 1)
	go func() {
		size, err := receiveOrders(stream, record, allowed, done, revocations)
		received <- answer{size, err}
	}()
	settled, revoking := pipes.settled, false
	for {
		// Before the last look: what is written until then is sent.
		ended := record.ended()
		offset, err = sendAll(stream, record, offset, done)
		if errors.Is(err, io.EOF) {
			return true, (<-received).err
		}
		if err != nil {
			return true, err
		}
		if ended {
			break
		}
		if (told.Err() != nil || revoking) && record.revoke() {
			// The container of the job has ended, or will not be started.
			message := unbegun(given.box)
			if err := stream.SendMsg(&message); err != nil {
				return true, orElse((<-received).err, "the server ended the call")
			}
			return true, (<-received).err
		}
		if revoking {
			// A recorder has begun.
			revoking = false
			message := answerTo(revokeOrder, 0)
			if err := stream.SendMsg(&message); err != nil {
				return true, orElse((<-received).err, "the server ended the call")
			}
		}
		select {
		case answered := <-received:
			return true, orElse(answered.err, "the server ended the call")
		case <-revocations:
			revoking = true
		case <-record.changed:
		case <-settled:
			settled = nil
		case message := <-done:
			if err := stream.SendMsg(&message); err != nil {
				return true, orElse((<-received).err, "the server ended the call")
			}
		case <-time.After(lookPause):
		}
	}
	if given.outputs {
		err := sendOutputs(stream, given.record+outputsEnd, kept)
		if errors.Is(err, io.EOF) {
			return true, orElse((<-received).err, "the server ended the call")
		}
		if err != nil {
			return true, err
		}
	}
	if pipes.complete {
		message := binary.LittleEndian.AppendUint64(nil, complete)
		if err := stream.SendMsg(&message); err != nil {
			return true, orElse((<-received).err, "the server ended the call")
		}
	}
	// Said in so many words: to the server, a connection that breaks may look like a side that was closed.
	last := binary.LittleEndian.AppendUint64(nil, uint64(offset))
	if err := stream.SendMsg(&last); err != nil {
		return true, orElse((<-received).err, "the server ended the call")
	}
	answered := <-received
	if answered.err == nil && answered.size < offset {
		return true, fmt.Errorf("the server has %d of %d bytes", answered.size, offset)
	}
	return true, answered.err
}

type answer struct {
	size int64
	err  error
}

func orElse(err error, text string) error {
	if err != nil {
		return err
	}
	return errors.New(text)
}

// sendAll sends all whole frames from the offset on, and returns the offset after them.
func sendAll(stream grpc.ClientStream, record *record, offset int64, done chan []byte) (int64, error) {
	for {
		select {
		case message := <-done:
			if err := stream.SendMsg(&message); err != nil {
				return offset, err
			}
		default:
		}
		from, piece, err := record.piece(offset, pieceBytes)
		if err != nil {
			return offset, err
		}
		if len(piece) == 0 {
			return offset, nil
		}
		message := append(binary.LittleEndian.AppendUint64(nil, uint64(from)), piece...)
		if err := stream.SendMsg(&message); err != nil {
			return offset, err
		}
		offset = from + int64(len(piece))
	}
}

// receiveFiles writes what the job gets, and returns the offset with which the start is granted, and that in the file
// with what the job has kept.
func receiveFiles(stream grpc.ClientStream, given options) (offset, kept int64, err error) {
	files, err := newFiles(given)
	defer files.close()
	if err != nil {
		return 0, 0, err
	}
	for {
		kind, content, err := receive(stream)
		if err != nil {
			return 0, 0, err
		}
		switch {
		case kind == 'S' && given.secrets:
			err = files.writeSecrets(content)
		case kind == 'I' && files.stdin != nil:
			_, err = files.stdin.Write(content)
		case kind == 'F' && files.inputs != nil:
			_, err = files.inputs.Write(content)
		case kind == 'K' && given.outputs && len(content) == 8:
			kept = int64(binary.LittleEndian.Uint64(content))
		case kind == 'G' && len(content) == 8:
			return int64(binary.LittleEndian.Uint64(content)), kept, files.complete()
		default:
			err = fmt.Errorf("an unexpected message %q of %d bytes", kind, len(content))
		}
		if err != nil {
			return 0, 0, err
		}
	}
}

// answerTo returns the answer to an order.
func answerTo(order, obeyed byte) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, orderDone), order, obeyed)
}

// receiveOrders passes orders to the recorder, and punches out what is on the server's disk. It returns the size that
// ends the call.
func receiveOrders(
	stream grpc.ClientStream, record *record, allowed *punching, done chan<- []byte, revocations chan<- struct{},
) (int64, error) {
	for {
		kind, content, err := receive(stream)
		switch {
		case err != nil:
			return 0, err
		case kind == 'O' && len(content) == 1 && content[0] == revokeOrder:
			select {
			case revocations <- struct{}{}:
			default: // It was asked already.
			}
		case kind == 'O' && len(content) == 1:
			// Not when the server is told: an answer may have to wait behind output.
			obeyed := byte(0)
			if err := record.order(content[0]); err == nil {
				obeyed = 1
			} else {
				fmt.Fprintln(os.Stderr, "relay:", err)
			}
			select {
			case done <- answerTo(content[0], obeyed):
			default: // The server does not wait for so many answers.
			}
		case kind == 'D' && len(content) == 8:
			record.punch(int64(binary.LittleEndian.Uint64(content)), allowed)
		case kind == 'E' && len(content) == 8:
			return int64(binary.LittleEndian.Uint64(content)), nil
		default:
			return 0, fmt.Errorf("an unexpected message %q of %d bytes", kind, len(content))
		}
	}
}

// receive returns the kind of a message from the server, and its content.
func receive(stream grpc.ClientStream) (byte, []byte, error) {
	var message []byte
	if err := stream.RecvMsg(&message); err != nil {
		return 0, nil, err
	}
	if len(message) == 0 {
		return 0, nil, errors.New("an empty message")
	}
	return message[0], message[1:], nil
}
