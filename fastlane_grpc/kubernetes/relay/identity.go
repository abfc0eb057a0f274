package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// The user and the groups of a job.
type identity struct {
	user, group int
	groups      []int
	home        string
}

// identityOf returns what USER or USER:GROUP is in this container, as an engine reads it: by name or number, with the
// group, the groups and the home that /etc/passwd and /etc/group have.
func identityOf(words string) (*identity, error) {
	user, group, hasGroup := strings.Cut(words, ":")
	its := &identity{home: "/"}
	name := ""
	entry, err := find("/etc/passwd", 7, func(fields []string) bool { return fields[0] == user || fields[2] == user })
	if err != nil {
		return nil, err
	}
	if entry != nil {
		name, its.home = entry[0], entry[5]
		if its.user, err = strconv.Atoi(entry[2]); err == nil {
			its.group, err = strconv.Atoi(entry[3])
		}
	} else {
		its.user, err = strconv.Atoi(user)
	}
	if err != nil {
		return nil, fmt.Errorf("the container has no user %q", user)
	}
	if hasGroup {
		entry, err := find("/etc/group", 4, func(fields []string) bool { return fields[0] == group || fields[2] == group })
		if err != nil {
			return nil, err
		}
		number := group
		if entry != nil {
			number = entry[2]
		}
		if its.group, err = strconv.Atoi(number); err != nil {
			return nil, fmt.Errorf("the container has no group %q", group)
		}
		return its, nil
	}
	_, err = find("/etc/group", 4, func(fields []string) bool {
		for _, member := range strings.Split(fields[3], ",") {
			if number, err := strconv.Atoi(fields[2]); err == nil && name != "" && member == name {
				its.groups = append(its.groups, number)
			}
		}
		return false
	})
	return its, err
}

// homeOfRoot returns what an engine sets HOME to for root.
func homeOfRoot() string {
	root, err := identityOf("0")
	if err != nil {
		return "/"
	}
	return root.home
}

// take makes this process the user's.
func (its *identity) take() error {
	if err := syscall.Setgroups(its.groups); err != nil {
		return err
	}
	if err := syscall.Setgid(its.group); err != nil {
		return err
	}
	return syscall.Setuid(its.user)
}

// find returns the fields of the first line of a file that has so many, and is the one; nil: there is none.
func find(path string, number int, is func([]string) bool) ([]string, error) {
	file, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if fields := strings.Split(lines.Text(), ":"); len(fields) >= number && is(fields) {
			return fields, nil
		}
	}
	return nil, lines.Err()
}
