//go:build go1.23

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"fastlane.example/fastlane"
	pb "fastlane.example/fastlane/v1"
)

const usage = `Usage: fastlane-tail [OPTION]... IMAGE [WORD]...

Runs a command in a container on a fastlane server: output live, the exit status is the job's.
A signal stops the job. With -job it follows a job that is there already, and stops nothing.

  fastlane-tail -address build:7020 -timeout 30m -env CI -env TOKEN=x alpine make test

Options:
`

var errHelp = errors.New("help was asked for")

// list is an option that may be given more than once; a variable has one value a line.
type list []string

func (l *list) String() string { return strings.Join(*l, "\n") }

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

type options struct {
	address, tlsCA, tlsCert, tlsKey, tokenFile     string
	task, image, script, command, user, workingDir string
	job, requestID, idFile, linkFile               string
	system, summary, page, prefix                  string
	words                                          []string
	envs, labels                                   list
	timeout, stopWhenUnwatched, wait, heartbeat    time.Duration
	retries                                        int
	quiet, timestamps                              bool
	lookup                                         func(string) (string, bool)
}

func (o *options) flags() *flag.FlagSet {
	f := flag.NewFlagSet("fastlane-tail", flag.ContinueOnError)
	f.StringVar(&o.address, "address", "", "the server as `HOST:PORT`; else FASTLANE_ADDRESS, else 127.0.0.1:7020")
	f.StringVar(&o.tlsCA, "tls-ca", "", "use TLS; an authority in this PEM `FILE`, or \"system\", signed the server's certificate")
	f.StringVar(&o.tlsCert, "tls-cert", "", "use TLS with the client's own certificate in this PEM `FILE`")
	f.StringVar(&o.tlsKey, "tls-key", "", "the key of -tls-cert, a PEM `FILE`")
	f.StringVar(&o.tokenFile, "token-file", "", "show the token in this `FILE` to the server; else FASTLANE_TOKEN, if it is set")
	f.StringVar(&o.task, "task", "ci", "the task `NAME` of the job")
	f.StringVar(&o.image, "image", "", "the image `NAME`, in place of the argument IMAGE")
	f.StringVar(&o.script, "script", "", "a `SCRIPT` for sh -e in the container, in place of words")
	f.StringVar(&o.command, "command", "", "a command `LINE`, split into words as a shell does, in place of words")
	f.Var(&o.envs, "env", "a variable of the container, `NAME=VALUE`, or NAME to copy it if it is set; may be repeated")
	f.Var(&o.labels, "label", "a label of the job, `NAME=VALUE`; may be repeated")
	f.StringVar(&o.user, "user", "", "the `USER` in the container")
	f.StringVar(&o.workingDir, "workdir", "", "the working `DIRECTORY` in the container")
	f.DurationVar(&o.timeout, "timeout", 0, "stop each attempt after this `TIME`, as 30m; 0: the server's default")
	f.IntVar(&o.retries, "retries", 0, "try a failed job again, at most `N` times")
	f.DurationVar(&o.stopWhenUnwatched, "stop-when-unwatched", 2*time.Minute,
		"stop the job when nobody has followed its log for this `TIME`, as when this step is killed; 0: never")
	f.DurationVar(&o.wait, "wait", time.Minute, "how much `TIME` a server that does not respond at the start has")
	f.StringVar(&o.requestID, "request-id", "", "run the job once, however often it is sent with this `ID`")
	f.StringVar(&o.job, "job", "", "follow the job with this `ID`; start nothing")
	f.StringVar(&o.idFile, "id-file", "", "write the job's id to this `FILE`")
	f.StringVar(&o.linkFile, "link-file", "",
		"write the address of the job's page to this `FILE`; with -system gitlab, as a report of annotations")
	f.DurationVar(&o.heartbeat, "heartbeat", 0, "a line on stderr each time that nothing was printed for this `TIME`; 0: none")
	f.StringVar(&o.prefix, "prefix", "", "begin each line of output with this `TEXT`")
	f.BoolVar(&o.timestamps, "timestamps", false, "begin each line of output with its time")
	f.StringVar(&o.system, "system", "", "on stderr, fold attempts and annotate a failure as this `SYSTEM` understands: github, gitlab")
	f.StringVar(&o.summary, "summary", "", "append the job and how it ended to this `FILE`, in Markdown")
	f.StringVar(&o.page, "page", "", "the `URL` of the server's page, for links to the job; else FASTLANE_URL")
	f.BoolVar(&o.quiet, "quiet", false, "no notes on stderr but errors")
	f.String("options-from", "", "options may be variables whose names begin with `PREFIX`: PREFIX_IMAGE, PREFIX_ENV")
	return f
}

// parse returns the options of the arguments, and of variables if -options-from names them. Arguments win. Values of
// variables are never part of a shell's text, so that an input of a CI system cannot become a command.
func parse(arguments []string, lookup func(string) (string, bool)) (*options, error) {
	o := &options{lookup: lookup}
	f := o.flags()
	f.SetOutput(io.Discard)
	if err := f.Parse(arguments); errors.Is(err, flag.ErrHelp) {
		f.SetOutput(os.Stdout)
		fmt.Fprint(os.Stdout, usage)
		f.PrintDefaults()
		return nil, errHelp
	} else if err != nil {
		return nil, fmt.Errorf("%w; fastlane-tail -help lists the options", err)
	}
	if prefix := f.Lookup("options-from").Value.String(); prefix != "" {
		if err := o.take(f, strings.TrimSuffix(prefix, "_")+"_"); err != nil {
			return nil, err
		}
	}
	o.words = f.Args()
	if len(o.words) > 0 && o.image == "" {
		o.image, o.words = o.words[0], o.words[1:]
	}
	if o.address == "" {
		o.address = o.variable("FASTLANE_ADDRESS", "127.0.0.1:7020")
	}
	if o.page == "" {
		o.page = o.variable("FASTLANE_URL", "")
	}
	return o, o.check()
}

func (o *options) variable(name, otherwise string) string {
	if value, found := o.lookup(name); found && value != "" {
		return value
	}
	return otherwise
}

// take sets the options that were not given from variables that are not empty.
func (o *options) take(f *flag.FlagSet, prefix string) (failure error) {
	given := map[string]bool{"options-from": true}
	f.Visit(func(each *flag.Flag) { given[each.Name] = true })
	f.VisitAll(func(each *flag.Flag) {
		name := prefix + strings.ToUpper(strings.ReplaceAll(each.Name, "-", "_"))
		value := o.variable(name, "")
		if given[each.Name] || value == "" || failure != nil {
			return
		}
		values := []string{value}
		if _, many := each.Value.(*list); many {
			values = slices.DeleteFunc(strings.Split(value, "\n"), func(line string) bool { return strings.TrimSpace(line) == "" })
		}
		for _, one := range values {
			if err := each.Value.Set(one); err != nil {
				failure = fmt.Errorf("%s: %q: %w", name, one, err)
			}
		}
	})
	return failure
}

func (o *options) check() error {
	given := 0
	for _, is := range []bool{o.script != "", o.command != "", len(o.words) > 0} {
		if is {
			given++
		}
	}
	switch {
	case (o.image == "") == (o.job == ""):
		return errors.New("give either an image or -job; fastlane-tail -help lists the options")
	case given > 1:
		return errors.New("give words, -command or -script, only one of them")
	case o.job != "" && given > 0:
		return errors.New("a job that is followed (-job) takes no command")
	case o.system != "" && o.system != "github" && o.system != "gitlab":
		return fmt.Errorf("-system is github or gitlab, not %q", o.system)
	case o.retries < 0 || o.timeout < 0 || o.stopWhenUnwatched < 0 || o.heartbeat < 0 || o.wait <= 0:
		return errors.New("-retries, -timeout, -stop-when-unwatched and -heartbeat are 0 or more, -wait more than 0")
	}
	for _, label := range o.labels {
		if !strings.Contains(label, "=") {
			return fmt.Errorf("-label %q is not NAME=VALUE", label)
		}
	}
	return nil
}

func (o *options) connect() (*fastlane.Client, error) {
	how := fastlane.Options{TLSCA: o.tlsCA, TLSCert: o.tlsCert, TLSKey: o.tlsKey, TokenFile: o.tokenFile}
	if o.tokenFile == "" {
		how.Token = o.variable("FASTLANE_TOKEN", "")
	}
	how.Traceparent, how.Tracestate = o.variable("TRACEPARENT", ""), o.variable("TRACESTATE", "")
	return fastlane.New(o.address, how)
}

func (o *options) request() *pb.EnqueueJobRequest {
	spec := &pb.JobSpec{
		Image: o.image, Command: o.command, Args: o.words, User: o.user, WorkingDir: o.workingDir,
		Envs: map[string]string{}, Labels: map[string]string{},
	}
	if o.script != "" {
		spec.Entrypoint, spec.Args = []string{"sh", "-ec"}, []string{o.script}
	}
	for _, each := range o.envs {
		name, value, given := strings.Cut(each, "=")
		if !given {
			value, given = o.lookup(name)
		}
		if given {
			spec.Envs[name] = value
		}
	}
	for _, each := range o.labels {
		name, value, _ := strings.Cut(each, "=")
		spec.Labels[name] = value
	}
	if o.timeout > 0 {
		spec.Timeout = durationpb.New(o.timeout)
	}
	if o.stopWhenUnwatched > 0 {
		spec.StopWhenUnwatched = durationpb.New(o.stopWhenUnwatched)
	}
	if o.retries > 0 {
		spec.Retry = &pb.Retry{MaxRetries: int32(o.retries)}
	}
	return &pb.EnqueueJobRequest{TaskId: o.task, Spec: spec, RequestId: o.requestID}
}
