// Go's client for exchanges.py. For each line "WAY METHOD URL FLAGS LENGTH" and LENGTH bytes to upload, it prints
// "STATUS LENGTH" and the bytes of the answer, or "0 0" for an error. Its argument is the address of the proxy.
package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

var proxy = os.Args[1]

// A connection through a tunnel: Go's own client makes tunnels for https only.
func tunnel(ctx context.Context, network, address string) (net.Conn, error) {
	connection, err := (&net.Dialer{}).DialContext(ctx, network, proxy)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(connection, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", address, address)
	answer, err := http.ReadResponse(bufio.NewReader(connection), &http.Request{Method: "CONNECT"})
	if err != nil || answer.StatusCode != 200 {
		connection.Close()
		return nil, fmt.Errorf("no tunnel: %v", err)
	}
	return connection, nil
}

func client(change func(*http.Transport)) *http.Client {
	transport := &http.Transport{DisableCompression: true, ExpectContinueTimeout: 20 * time.Second}
	change(transport)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func exchange(client *http.Client, method, address, flags string, upload []byte) (int, []byte) {
	var body io.Reader
	if method != "GET" {
		body = bytes.NewReader(upload)
		if strings.Contains(flags, "chunked") {
			// Without a length that it can see, it sends chunks.
			body = io.MultiReader(body)
		}
	}
	request, err := http.NewRequest(method, address, body)
	if err != nil {
		return 0, nil
	}
	if strings.Contains(flags, "trailers") {
		request.Trailer = http.Header{"X-Sum": {"1"}}
	}
	if strings.Contains(flags, "expect") {
		request.Header.Set("Expect", "100-continue")
	}
	answer, err := client.Do(request)
	if err != nil {
		return 0, nil
	}
	defer answer.Body.Close()
	got, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, nil
	}
	return answer.StatusCode, got
}

func main() {
	address := &url.URL{Scheme: "http", Host: proxy}
	clients := map[string]*http.Client{
		"proxy":   client(func(transport *http.Transport) { transport.Proxy = http.ProxyURL(address) }),
		"connect": client(func(transport *http.Transport) { transport.DialContext = tunnel }),
		"mirror":  client(func(*http.Transport) {}),
	}
	in := bufio.NewReader(os.Stdin)
	for {
		var way, method, address, flags string
		var length int
		if _, err := fmt.Fscanf(in, "%s %s %s %s %d\n", &way, &method, &address, &flags, &length); err != nil {
			return
		}
		upload := make([]byte, length)
		if _, err := io.ReadFull(in, upload); err != nil {
			return
		}
		status, body := exchange(clients[way], method, address, flags, upload)
		fmt.Printf("%d %d\n", status, len(body))
		os.Stdout.Write(body)
	}
}
