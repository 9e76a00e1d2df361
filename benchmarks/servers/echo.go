// Go's net package: a goroutine for each connection.
package main

import (
	"flag"
	"fmt"
	"net"
	"os"
)

func echo(connection net.Conn) {
	defer connection.Close()
	buffer := make([]byte, 4096)
	for {
		size, err := connection.Read(buffer)
		if err != nil {
			return
		}
		if _, err = connection.Write(buffer[:size]); err != nil {
			return
		}
		// Larger messages get a larger buffer; idle connections keep the small one.
		if size == len(buffer) && size < 65536 {
			buffer = make([]byte, 65536)
		}
	}
}

func main() {
	port := flag.Int("port", 0, "port to listen on")
	flag.Parse()
	// The backlog is the system's somaxconn.
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("ready")
	for {
		connection, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go echo(connection)
	}
}
