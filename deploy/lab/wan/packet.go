package wan

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// A packet from a TUN device with IFF_VNET_HDR begins with struct virtio_net_hdr of
// linux/virtio_net.h, in this machine's byte order.
const (
	vnetHeader   = 10
	vnetGSOType  = 1
	vnetHeadLen  = 2
	vnetGSOSize  = 4
	needsSum     = 1 // in the first byte: the checksum has that of the pseudo header only
	gsoNone      = 0
	gsoTCPv4     = 1
	gsoECN       = 0x80
	tcpChecksum  = 16 // offsets in a TCP header
	tcpFlags     = 13
	flagFIN      = 1 << 0
	flagSYN      = 1 << 1
	flagPSH      = 1 << 3
	flagACK      = 1 << 4
	flagCWR      = 1 << 7
	mostInPacket = vnetHeader + 65535
)

// packet is what a TUN device gave. One with several segments is a large TCP
// segment over IPv4 that is to be cut into packets for the wire.
type packet struct {
	bytes    []byte
	headers  int // of IP and TCP; 0 where there is one segment
	payload  int // of each segment but the last
	segments int
}

func parse(b []byte) (packet, error) {
	if len(b) < vnetHeader+20 {
		return packet{}, fmt.Errorf("a packet of %d bytes", len(b))
	}
	gso := b[vnetGSOType] &^ gsoECN
	if gso == gsoNone {
		return packet{bytes: b, segments: 1}, nil
	}
	size := int(binary.NativeEndian.Uint16(b[vnetGSOSize:]))
	ip := b[vnetHeader:]
	if gso != gsoTCPv4 || b[0]&needsSum == 0 || size == 0 || ip[0]>>4 != 4 || ip[9] != unix.IPPROTO_TCP {
		return packet{}, fmt.Errorf("an offload that was not asked for: type %d, flags %d, size %d", gso, b[0], size)
	}
	head := int(ip[0]&15) * 4
	if head < 20 || len(ip) < head+20 {
		return packet{}, fmt.Errorf("a packet of %d bytes with an IP header of %d", len(ip), head)
	}
	head += int(ip[head+12]>>4) * 4
	if len(ip) <= head {
		return packet{}, fmt.Errorf("a packet of %d bytes with headers of %d", len(ip), head)
	}
	return packet{bytes: b, headers: head, payload: size, segments: (len(ip) - head + size - 1) / size}, nil
}

// length is the number of bytes of one segment's IP packet.
func (p packet) length(segment int) int {
	if p.segments == 1 {
		return len(p.bytes) - vnetHeader
	}
	if segment < p.segments-1 {
		return p.headers + p.payload
	}
	return len(p.bytes) - vnetHeader - p.payload*(p.segments-1)
}

// opens reports whether it is the first packet of a TCP connection over IPv4.
func (p packet) opens() bool {
	ip := p.bytes[vnetHeader:]
	head := int(ip[0]&15) * 4
	return ip[0]>>4 == 4 && ip[9] == unix.IPPROTO_TCP && len(ip) > head+tcpFlags && ip[head+tcpFlags]&(flagSYN|flagACK) == flagSYN
}

// cut appends to dst the packet of the segments from first on, up to but not
// including end, in the form that a TUN device takes.
func (p packet) cut(dst []byte, first, end int) []byte {
	if first == 0 && end == p.segments {
		return append(dst, p.bytes...)
	}
	headers := p.bytes[:vnetHeader+p.headers]
	payload := p.bytes[len(headers):]
	base := len(dst)
	dst = append(dst, headers...)
	dst = append(dst, payload[first*p.payload:min(end*p.payload, len(payload))]...)

	vnet, ip := dst[base:], dst[base+vnetHeader:]
	binary.NativeEndian.PutUint16(vnet[vnetHeadLen:], uint16(p.headers))
	if end-first == 1 {
		vnet[vnetGSOType] = gsoNone
		binary.NativeEndian.PutUint16(vnet[vnetGSOSize:], 0)
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[4:], binary.BigEndian.Uint16(ip[4:])+uint16(first))
	head := int(ip[0]&15) * 4
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip[:head]))

	tcp := ip[head:]
	binary.BigEndian.PutUint32(tcp[4:], binary.BigEndian.Uint32(tcp[4:])+uint32(first*p.payload))
	if first > 0 {
		tcp[tcpFlags] &^= flagCWR
	}
	if end < p.segments {
		tcp[tcpFlags] &^= flagFIN | flagPSH
	}
	binary.BigEndian.PutUint16(tcp[tcpChecksum:], sum(uint32(unix.IPPROTO_TCP+len(tcp)), ip[12:20]))
	return dst
}

// sum is the ones' complement sum of RFC 1071 over an even number of bytes.
func sum(s uint32, b []byte) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
