//go:build go1.23

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	pb "fastlane.example/fastlane/v1"
)

// notes writes the output of the job, and on stderr what is not of the job: each note is a line of its own.
type notes struct {
	options *options
	lock    sync.Mutex
	// inLine says of each source that its last byte was not the end of a line.
	inLine   map[pb.Source]bool
	spoken   time.Time
	link     string
	doing    string
	isFolded bool
	folds    int
	attempt  int32
	current  string
}

func newNotes(options *options) *notes {
	n := &notes{options: options, inLine: map[pb.Source]bool{}, spoken: time.Now(), doing: "waits for the server"}
	if options.heartbeat > 0 {
		go n.beat()
	}
	return n
}

// beat says each time that nothing was printed for a while what the job does.
func (n *notes) beat() {
	for {
		n.lock.Lock()
		left := n.options.heartbeat - time.Since(n.spoken)
		state := n.doing
		n.lock.Unlock()
		if left <= 0 {
			n.write("the job %s; nothing was printed for %s", state, n.options.heartbeat)
			continue
		}
		time.Sleep(left)
	}
}

// say writes an error or a signal's note, also with -quiet.
func (n *notes) say(format string, values ...any) { n.write(format, values...) }

func (n *notes) write(format string, values ...any) {
	n.lock.Lock()
	defer n.lock.Unlock()
	n.line("fastlane-tail: " + printable(fmt.Sprintf(format, values...)))
}

// line writes a line on stderr, never into a line of the job.
func (n *notes) line(text string) {
	begin := ""
	if n.inLine[pb.Source_SOURCE_STDERR] {
		begin = "\n"
		n.inLine[pb.Source_SOURCE_STDERR] = false
	}
	fmt.Fprint(os.Stderr, begin+text+"\n")
	n.spoken = time.Now()
}

// printable makes control characters of words from elsewhere visible.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return '\ufffd'
		}
		return r
	}, text)
}

func (n *notes) output(chunk *pb.LogChunk) error {
	n.lock.Lock()
	defer n.lock.Unlock()
	file := os.Stdout
	if chunk.Source == pb.Source_SOURCE_STDERR {
		file = os.Stderr
	} else if chunk.Source != pb.Source_SOURCE_STDOUT {
		return nil
	}
	n.spoken = time.Now()
	data := chunk.Data
	if n.options.prefix != "" || n.options.timestamps {
		data = n.begun(chunk)
	}
	if len(chunk.Data) > 0 {
		n.inLine[chunk.Source] = chunk.Data[len(chunk.Data)-1] != '\n'
	}
	_, err := file.Write(data)
	return err
}

// begun returns the output with what each line is to begin with.
func (n *notes) begun(chunk *pb.LogChunk) []byte {
	begin := n.options.prefix
	if n.options.timestamps {
		begin = chunk.Time.AsTime().Format("2006-01-02T15:04:05.000Z ") + begin
	}
	var result bytes.Buffer
	isIn := n.inLine[chunk.Source]
	for rest := chunk.Data; len(rest) > 0; {
		if !isIn {
			result.WriteString(begin)
		}
		end := bytes.IndexByte(rest, '\n') + 1
		isIn = end == 0
		if isIn {
			end = len(rest)
		}
		result.Write(rest[:end])
		rest = rest[end:]
	}
	return result.Bytes()
}

func (n *notes) enqueued(job *pb.Job) {
	if n.options.page != "" {
		n.link = strings.TrimSuffix(n.options.page, "/") + "/jobs/" + job.Id
	}
	n.doing = "is queued"
	if n.options.quiet {
		return
	}
	if n.link == "" {
		n.write("job %s", job.Id)
	} else {
		n.write("job %s, %s", job.Id, n.link)
	}
}

// linkText returns the address of the job's page as the system takes it; empty if it is not known.
func (n *notes) linkText() string {
	if n.link == "" || n.options.system != "gitlab" {
		return n.link
	}
	type link struct {
		Label string `json:"label"`
		URL   string `json:"url"`
	}
	external := map[string]link{"external_link": {"job on fastlane", n.link}}
	// A map of strings cannot fail.
	report, _ := json.Marshal(map[string][]map[string]link{"fastlane": {external}})
	return string(report)
}

var states = map[pb.State]string{
	pb.State_STATE_SCHEDULED: "waits until it is due", pb.State_STATE_QUEUED: "is queued",
	pb.State_STATE_PREPARING: "is being started", pb.State_STATE_RUNNING: "runs", pb.State_STATE_STOPPING: "is being stopped",
}

func (n *notes) state(event *pb.LogState) {
	n.lock.Lock()
	defer n.lock.Unlock()
	if text, known := states[event.State]; known {
		n.doing = text
	}
}

func (n *notes) gap(event *pb.LogGap) {
	source := strings.ToLower(strings.TrimPrefix(event.Source.String(), "SOURCE_"))
	cause := strings.TrimPrefix(event.Cause.String(), "CAUSE_")
	if event.MissingBytes == nil {
		n.write("output of %s is missing here (%s)", source, cause)
	} else {
		n.write("%d bytes of %s are missing here (%s)", *event.MissingBytes, source, cause)
	}
}

// execution tells of another attempt or run, and folds its output where the system has folds.
func (n *notes) execution(event *pb.JobLogExecution) {
	n.lock.Lock()
	defer n.lock.Unlock()
	execution := event.Execution
	if execution.Id == n.current {
		return
	}
	isFirst := n.current == ""
	n.current, n.attempt = execution.Id, execution.Attempt
	title := fmt.Sprintf("attempt %d of %d", execution.Attempt, max(event.MaxAttempts, execution.Attempt))
	if !isFirst && !n.options.quiet {
		n.line("fastlane-tail: " + title)
	}
	if n.options.system != "" && event.MaxAttempts > 1 {
		n.unfold()
		n.folds++
		n.isFolded = true
		if n.options.system == "github" {
			n.line("::group::" + title)
		} else {
			n.line(fmt.Sprintf("section_start:%d:fastlane_%d\r\x1b[0K%s", time.Now().Unix(), n.folds, title))
		}
	}
}

func (n *notes) unfold() {
	if !n.isFolded {
		return
	}
	n.isFolded = false
	if n.options.system == "github" {
		n.line("::endgroup::")
	} else {
		n.line(fmt.Sprintf("section_end:%d:fastlane_%d\r\x1b[0K", time.Now().Unix(), n.folds))
	}
}

// ended tells how the job ended if it did not succeed, and writes the summary.
func (n *notes) ended(event *pb.JobLogEnd) {
	n.lock.Lock()
	defer n.lock.Unlock()
	n.unfold()
	job := event.Job
	state := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(job.State.String(), "STATE_"), "_", " "))
	detail := printable(job.GetOutcome().GetDetail())
	told := fmt.Sprintf("job %s: %s", job.Id, state)
	if detail != "" {
		told += ": " + detail
	}
	isGood := job.State == pb.State_STATE_SUCCEEDED
	switch {
	case !isGood && n.options.system == "github":
		// One line of a workflow command: % and ends of lines are escaped, and no comma or colon is in the title.
		n.line("::error title=fastlane::" + strings.ReplaceAll(told, "%", "%25"))
	case !isGood && job.GetOutcome().GetReason() != pb.Reason_REASON_EXIT_CODE:
		n.line("fastlane-tail: " + told)
	}
	if n.options.summary == "" {
		return
	}
	file, err := os.OpenFile(n.options.summary, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		n.line("fastlane-tail: " + err.Error())
		return
	}
	defer file.Close()
	name := "`" + job.Id + "`"
	if n.link != "" {
		name = "[" + name + "](" + n.link + ")"
	}
	fmt.Fprintf(file, "fastlane job %s %s, exit status %d.", name, state, event.ExitStatus)
	if detail != "" {
		fmt.Fprintf(file, "\n\n```\n%s\n```", strings.ReplaceAll(detail, "```", "'''"))
	}
	fmt.Fprintln(file)
}
