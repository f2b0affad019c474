/**
 * Where we may differ from a predecessor under its own name, each with its reason. Whatever
 * differential.test.ts sees that is not here is a fault of ours; a row that it does not see is one
 * of the table's.
 */
import type { Predecessor } from "../../src/predecessor.ts";

export interface Difference {
  readonly program: Predecessor;
  /** The observation's name in differential.test.ts. */
  readonly what: string;
  readonly theirs: string;
  readonly ours: string;
  readonly why: string;
}

const AT_THE_END = "the last line of a connection says everything about it, so that no other must be looked for";
const BOUND = "BND is the address by which the connection leaves, as RFC 1928 has it; usocksd echoed the request";
const NO_BOUND = "a refusal has no address to tell; usocksd echoed the request, a name with type 3, which some clients choke on";
const RESET = "a program shall not take a failure of the upstream for the orderly end of its destination";

const row = (program: Predecessor, what: string, theirs: string, ours: string, why: string): Difference =>
  Object.freeze({ program, what, theirs, ours, why });

const start = (topic: string, socks = ""): string =>
  `proxy starts: client_addr ${socks === "" ? "" : "command=connect "}dest_addr=198.51.100.10:80 ${socks === "" ? "" : "dest_host=198.51.100.10 "}logged_at message pid ${socks}request_id severity=info ${socks === "" ? "" : "src_addr "}topic=${topic} type=access utsname`;

export const DIFFERENCES: readonly Difference[] = [
  row(
    "transocks", "SOCKS5: log",
    `${start("transocks")}\nproxy ends: elapsed logged_at message pid request_id severity=info topic=transocks utsname`,
    `${start("transocks")}\nproxy ends: client_addr dest_addr=198.51.100.10:80 elapsed logged_at message pid reason=finished request_id rx_bytes severity=info topic=transocks tx_bytes type=access utsname`,
    AT_THE_END,
  ),
  row(
    "transocks", "HTTP: the upstream hears",
    "CONNECT 198.51.100.10:80 HTTP/1.1\r\nHost: 198.51.100.10:80\r\nUser-Agent: Go-http-client/1.1\r\nProxy-Authorization: Basic dXNAZXI6cDp3\r\n\r\n | tunnel hello",
    "CONNECT 198.51.100.10:80 HTTP/1.1\r\nHost: 198.51.100.10:80\r\nUser-Agent: transplice\r\nProxy-Authorization: Basic dXNAZXI6cDp3\r\n\r\n | tunnel hello",
    "we are not a Go program",
  ),
  row("transocks", "a refusal: a silent client hears", "fin", "reset", RESET),
  row(
    "transocks", "a refusal: log",
    "failed to connect to proxy server: client_addr dest_addr=198.51.100.10:80 error logged_at message pid request_id severity=error topic=transocks type=access utsname\nproxy ends: never said",
    "failed to connect to proxy server: never said\nproxy ends: cause client_addr dest_addr=198.51.100.10:80 elapsed error logged_at message pid reason=upstream-refused request_id rx_bytes severity=info topic=transocks tx_bytes type=access utsname",
    "the proxy was reached, and its destination was not: no error of the proxy, and nothing to wake anybody for",
  ),
  row("redsocks", "command line: -v, first line", "redsocks/0.5", "redsocks/0.5 (transplice 0.1.0)", "it shall show who it is"),
  row("redsocks", "command line: unknown option, exit code", "0", "1", "a mistake is no success"),
  row(
    "redsocks", "command line: -t of redudp, exit code", "0", "1",
    "there is nothing for it, and the operator has to say that he can do without (--ignore-unsupported)",
  ),
  row(
    "redsocks", "upstreams: HTTP, the upstream hears",
    "CONNECT 198.51.100.10:80 HTTP/1.0\r\n\r\n | tunnel hello",
    "CONNECT 198.51.100.10:80 HTTP/1.1\r\nHost: 198.51.100.10:80\r\nUser-Agent: transplice\r\n\r\n | tunnel hello",
    "there are proxies that want a Host, which HTTP/1.1 demands",
  ),
  row("redsocks", "a refusal: a silent client hears", "fin", "reset", RESET),
  row("usocksd", "dialogues: SOCKS5 CONNECT", "050005000001c633640a0050 there! fin", "050005000001c0000202port there! fin", BOUND),
  row("usocksd", "dialogues: SOCKS5 all at once", "050005000001c633640a0050 there! fin", "050005000001c0000202port there! fin", BOUND),
  row(
    "usocksd", "dialogues: SOCKS5 with a password that nobody asked for",
    "0502010005000001c633640a0050 there! fin", "0502010005000001c0000202port there! fin", BOUND,
  ),
  row("usocksd", "dialogues: SOCKS4 CONNECT", "005a0050c633640a there! fin", "005aportc0000202 there! fin", BOUND),
  row("usocksd", "dialogues: SOCKS5 of a port that is denied", "050005020001c633640a0019 fin", "050005020001000000000000 fin", NO_BOUND),
  row(
    "usocksd", "dialogues: SOCKS5 of a site that is denied",
    "0500050200030b6261642e6578616d706c650050 fin", "050005020001000000000000 fin", NO_BOUND,
  ),
  row("usocksd", "dialogues: SOCKS5 of a port where nobody is", "050005050001c633640a0051 fin", "050005050001000000000000 fin", NO_BOUND),
  row("usocksd", "dialogues: SOCKS5 BIND", "050005070001c633640a0050 fin", "050005070001000000000000 fin", NO_BOUND),
  row("usocksd", "dialogues: SOCKS5 UDP ASSOCIATE", "050005070001c633640a0050 fin", "050005070001000000000000 fin", NO_BOUND),
  row(
    "usocksd", "dialogues: SOCKS5 of an unknown address type", "0500 reset", "050005080001000000000000 fin",
    "RFC 1928 has a reply for it",
  ),
  row(
    "usocksd", "dialogues: SOCKS5 with both methods offered", "0502010005000001c633640a0050 there! fin", "050005010001000000000000 fin",
    "without [users] no password is asked for; the client that sends one all the same, unasked, has not said what it wants",
  ),
  row(
    "usocksd", "dialogues: SOCKS4 BIND", "005b000000000000 reset", "005b000000000000 fin",
    "what the client has sent has been read, so that no reset can overtake the answer",
  ),
  row(
    "usocksd", "dialogues: log",
    `${start("usocksd", "protocol=SOCKS5 ")}\nproxy ends: elapsed logged_at message pid request_id severity=info topic=usocksd utsname`,
    `${start("usocksd", "protocol=SOCKS5 ")}\nproxy ends: client_addr command=connect dest_addr=198.51.100.10:80 dest_host=198.51.100.10 elapsed logged_at message pid protocol=SOCKS5 reason=finished request_id rx_bytes severity=info src_addr topic=usocksd tx_bytes type=access utsname`,
    AT_THE_END,
  ),
];
