/**
 * The rules that `transplice firewall` makes, in a real kernel with real traffic: each backend, both
 * modes, programs of the host and routed clients, both families; what is left alone; and that they
 * come and go without a trace, beside an administrator's own.
 */
import { strict as assert } from "node:assert";
import { text } from "./actors.ts";
import { ADMIN_PORT, Asker, TOKEN } from "./admin.ts";
import { FAMILIES, LAN, PROXY, RELAY, SERVER } from "./network.ts";
import { BACKENDS, everything, Firewall, MARK, servers, theirs, touchLegacy } from "./rules.ts";
import { unprivileged } from "./sandbox.ts";
import { scenario } from "./scenario.ts";
import { visit, webServer } from "./web.ts";

for (const backend of BACKENDS) {
  for (const mode of ["redirect", "tproxy"] as const) {
    scenario(`${backend}, ${mode}: traffic, twice, compared, and gone without a trace`, async (stage) => {
      servers(stage);
      servers(stage, 81);
      touchLegacy(stage);
      theirs(stage);
      const upstream = stage.upstream({ protocol: "socks5", dials: true });
      const settings = {
        listen: ":1081", proxy_url: upstream.url(), mode, mark: MARK, workers: 1,
        firewall: { interfaces: ["inner"], exclude_ports: [81, "4000-5000"], exclude: ["198.51.100.77/32"] },
      };
      const before = everything(stage);
      const firewall = new Firewall(stage, settings);
      assert.match(firewall.status(), /^3 absent/);
      assert.equal(firewall.apply(backend), `engaged (${backend})\n`);
      const applied = everything(stage);
      assert.notEqual(applied, before);
      assert.match(firewall.status(), new RegExp(`^0 engaged \\(${backend}\\)`));
      firewall.apply(backend);
      assert.equal(everything(stage), applied, "twice is once");

      const relay = await stage.relay(settings);
      for (const family of FAMILIES) {
        const url = `http://${text(SERVER[family], 80)}/`;
        for (const [client, address] of [[stage.net.relay, RELAY], [stage.net.lan, LAN]] as const) {
          assert.equal((await visit(client, url)).peer, PROXY[family], `IPv${family}, ${client.name}: the server sees the proxy`);
          const end = await relay.logged("the end", (entry) => entry.message.startsWith("proxy ends") && String(entry["client_addr"]).includes(address[family]));
          assert.equal(end["dest_addr"], text(SERVER[family], 80));
        }
        const direct = await visit(stage.net.relay, `http://${text(SERVER[family], 81)}/`);
        assert.equal(direct.peer, RELAY[family], "an excluded port goes its own way");
      }
      const special = webServer(stage.net.lan, LAN[4], 80);
      const excluded = webServer(stage.net.internet, "198.51.100.77", 80);
      const local = webServer(stage.net.relay, RELAY[4], 8080);
      stage.finally(() => [special, excluded, local].forEach((server) => void server.close()));
      const asked = upstream.requests.length;
      assert.equal((await visit(stage.net.relay, `http://${LAN[4]}/`)).peer, "10.7.0.1", "a private destination");
      assert.equal((await visit(stage.net.relay, "http://198.51.100.77/")).peer, RELAY[4], "an excluded destination");
      assert.equal((await visit(stage.net.lan, `http://${RELAY[4]}:8080/`)).peer, LAN[4], "the host itself, from within");
      assert.equal((await visit(stage.net.internet, `http://${RELAY[4]}:8080/`)).peer, "192.0.2.3", "the host itself, from without");
      assert.equal(upstream.requests.length, asked, "none of them went through the proxy");

      // Included by name: what is private, and only that.
      firewall.change({ ...settings, firewall: { include: ["10.7.0.0/16"] } });
      assert.match(firewall.status(), /^1 differs/);
      firewall.apply(backend);
      assert.match(firewall.status(), /^0 engaged/);
      await visit(stage.net.relay, `http://${LAN[4]}/`).catch(() => null);
      assert.equal(upstream.requests.at(-1)?.host, LAN[4], "an included private network");
      const count = upstream.requests.length;
      assert.equal((await visit(stage.net.relay, `http://${text(SERVER[4], 80)}/`)).peer, RELAY[4]);
      assert.equal(upstream.requests.length, count, "and nothing else");

      assert.equal(firewall.run("remove").status, 0);
      assert.equal(everything(stage), before, "without a trace");
      assert.equal(firewall.run("remove").status, 0, "twice is fine");
      assert.equal(everything(stage), before);
      assert.match(firewall.status(), /^3 absent/);
    });
  }
  for (const mode of ["redirect", "tproxy"] as const) {
    scenario(`${backend}, ${mode}: the admin endpoint is asked past the rules, from this host, within and without`, async (stage) => {
      servers(stage);
      touchLegacy(stage);
      const upstream = stage.upstream({ protocol: "socks5", dials: true });
      // Named by the operator, the host's own networks are included: its own addresses never are.
      const include = ["127.0.0.0/8", "10.7.0.0/16", "192.0.2.0/24", "fd07::/64", "2001:db8:2::/64", "198.51.100.0/24", "2001:db8:100::/48"];
      const settings = {
        listen: ":1081", proxy_url: upstream.url(), mode, mark: MARK, workers: 1,
        admin: { listen: `:${ADMIN_PORT}`, token: TOKEN },
        firewall: { interfaces: ["inner"], include, exclude: ["192.0.2.3/32"] },
      };
      const firewall = new Firewall(stage, settings);
      firewall.apply(backend);
      const relay = await stage.relay(settings);
      const { relay: own, lan, internet } = stage.net;
      for (const family of FAMILIES) {
        const loopback = family === 4 ? "127.0.0.1" : "::1";
        const inner = family === 4 ? "10.7.0.1" : "fd07::1";
        const askers = [[own, loopback], [own, RELAY[family]], [own, inner], [lan, inner], [lan, RELAY[family]], [internet, RELAY[family]]] as const;
        const direct = upstream.requests.length;
        for (const [from, address] of askers) {
          assert.equal((await new Asker(from, address).get("/healthz")).status, 200, `${from.name} asks ${address}`);
        }
        assert.equal(upstream.requests.length, direct, "none of them went through the proxy");
        assert.equal((await visit(lan, `http://${text(SERVER[family], 80)}/`)).peer, PROXY[family], "which others do");
      }
      firewall.run("remove");
      assert.equal((await relay.stop()).code, 0);
    });
  }
  scenario(`${backend}: a rule that somebody took away is named, and apply brings it back`, async (stage) => {
    const firewall = new Firewall(stage, { proxy_url: "socks5://203.0.113.5:1080", mark: MARK });
    firewall.apply(backend);
    const host = stage.net.relay;
    if (backend === "nft") host.run("nft", ["flush", "chain", "inet", "transplice", "output_ports"]);
    else host.run(backend === "iptables" ? "iptables-nft" : backend, ["-t", "nat", "-F", "TRANSPLICE_OUTPUT_PORT"]);
    const { status, stdout } = firewall.run("status");
    assert.equal(status, 1);
    assert.match(stdout, /^- .*(redirect to :1081|REDIRECT --to-ports 1081)$/im);
    firewall.apply(backend);
    assert.match(firewall.status(), /^0 engaged/);
  });
}

for (const backend of ["nft", "iptables"] as const) {
  scenario(`${backend}: CAP_NET_ADMIN is enough to set rules, as in an init container, and they are root's`, async (stage) => {
    const firewall = new Firewall(stage, { proxy_url: "socks5://203.0.113.5:1080", mark: MARK });
    firewall.apply(backend); // Or it is not for this machine.
    firewall.run("remove");
    const few = ["setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all"];
    const applied = firewall.runAs(few, "apply", "--backend", backend);
    assert.deepEqual([applied.status, applied.stdout], [0, `engaged (${backend})\n`], applied.stderr);
    assert.match(firewall.status(), new RegExp(`^0 engaged \\(${backend}\\)`));
    const asked = firewall.runAs(few, "status");
    assert.equal(asked.status, 4);
    assert.match(asked.stderr, /takes CAP_SYS_ADMIN; run: sudo transplice firewall status/);
    assert.equal(firewall.runAs(few, "remove").status, 0);
    assert.match(firewall.status(), /^3 absent/);
  });
}

scenario("another backend takes the place of the first", async (stage) => {
  const firewall = new Firewall(stage, { proxy_url: "socks5://203.0.113.5:1080", mark: MARK });
  for (const backend of ["iptables", "nft", "iptables-legacy", "iptables"]) {
    firewall.apply(backend);
    assert.match(firewall.status(), new RegExp(`^0 engaged \\(${backend}\\)`));
  }
});

scenario("leftovers of an earlier us go, and what is theirs stays", async (stage) => {
  touchLegacy(stage);
  const host = stage.net.relay;
  const firewall = new Firewall(stage, { proxy_url: "socks5://203.0.113.5:1080", mark: MARK });
  // Somebody's chain leads to where one of ours is: ours can be made, but not removed.
  host.run("ip6tables-legacy", ["-t", "nat", "-N", "TRANSPLICE_OLD"]);
  host.run("ip6tables-legacy", ["-t", "nat", "-N", "THEIRS"]);
  host.run("ip6tables-legacy", ["-t", "nat", "-A", "THEIRS", "-j", "RETURN"]);
  host.run("ip6tables-legacy", ["-t", "mangle", "-N", "TRANSPLICE_OUTPUT"]);
  host.run("ip6tables-legacy", ["-t", "mangle", "-A", "TRANSPLICE_OUTPUT", "-j", "ACCEPT"]);
  stage.finally(() => void host.attempt("sh", ["-c", "ip6tables-legacy -t nat -F THEIRS; ip6tables-legacy -t nat -X THEIRS"]));
  // What is left of an earlier us, in any table, goes.
  firewall.apply("iptables-legacy");
  assert.match(firewall.status(), /^0 engaged/);
  assert.doesNotMatch(everything(stage), /TRANSPLICE_OLD/);
});

scenario("the service's user is let through, and so are others that are named", async (stage) => {
  if (unprivileged()) stage.skip("in a user namespace there is only one user");
  servers(stage);
  const upstream = stage.upstream({ protocol: "socks5", dials: true });
  const settings = { proxy_url: upstream.url(), firewall: { service_user: "root", exclude_users: ["65533"] } };
  await stage.relay(settings);
  for (const backend of BACKENDS) {
    const firewall = new Firewall(stage, settings);
    firewall.apply(backend);
    for (const [uid, peer] of [["65534", PROXY[4]], ["65533", RELAY[4]], ["0", RELAY[4]]] as const) {
      const { output } = await stage.net.relay.execute("setpriv", `--reuid=${uid}`, `--regid=${uid}`, "--clear-groups",
        "curl", "-sS", "--noproxy", "*", "--max-time", "60", `http://${text(SERVER[4], 80)}/`);
      assert.equal(JSON.parse(output).peer, peer, `${backend}, user ${uid}`);
    }
    firewall.run("remove");
  }
});

scenario("what is missing is said, with what to do", async (stage) => {
  const firewall = new Firewall(stage, { listen: "127.0.0.1:1081", proxy_url: `socks5://${RELAY[4]}:1080`, firewall: { service_user: "nobody-such" } });
  assert.match(firewall.run("apply").stderr, /useradd .*nobody-such/);
  firewall.change({ proxy_url: `socks5://${RELAY[4]}:1080`, mark: MARK, firewall: { backend: "nft", exclude_cgroups: ["nowhere.slice"] } });
  assert.match(firewall.run("apply").stderr, /a cgroup of exclude_cgroups in \[firewall\] does not exist now.*nowhere\.slice/);
  firewall.change({ listen: "127.0.0.1:1081", proxy_url: `socks5://${RELAY[4]}:1080`, mark: MARK, firewall: { interfaces: ["none0"] } });
  const { status, stdout } = firewall.run("check");
  assert.equal(status, 1);
  for (const words of [/IPv6 goes past/, /is on this host/, /no interface none0/, /nothing listens/]) assert.match(stdout, words);
});
