//! The proxies that are compared, each as one who knows it would set it up for one kind of work: one thread, connections to the
//! origin kept, one line of log for each connection or request.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A proxy that does not listen by then is not there.
const START: Duration = Duration::from_secs(20);

/// How a client asks there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The origin itself.
    Direct,
    /// With whole URLs.
    Absolute,
    /// As the origin would be asked.
    Origin,
    Connect,
    /// It carries bytes to the origin, whatever they are.
    Tcp,
}

/// A way to the origin, and the process whose cost it is.
#[derive(Clone, Debug)]
pub struct Way {
    pub name: String,
    pub form: Form,
    pub address: SocketAddr,
    process: Option<Arc<Process>>,
}

impl Way {
    pub fn direct(name: &str, origin: SocketAddr) -> Way {
        Way { name: name.to_owned(), form: Form::Direct, address: origin, process: None }
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.child.id())
    }
}

/// A way that is there, or the cause why not.
pub type Found = Result<Way, (String, String)>;

#[derive(Debug)]
struct Process {
    child: Child,
    _folder: TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        // A master would leave its workers behind.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the proxies of one kind of work are set up for.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub origin: SocketAddr,
    /// The most connections to the origin.
    pub cap: usize,
}

impl Setting {
    pub fn roadstead(self, forms: &[Form]) -> Vec<Found> {
        let Setting { origin, cap } = self;
        let [proxy, mirror, admin] = [free(), free(), free()];
        let text = format!(
            "[listen]\nproxy = \"{proxy}\"\nadmin = \"{admin}\"\nmax_clients = 60000\n[registries.origin]\nhosts = [\"{origin}\"]\n\
             cap = {cap}\nshare = 1\n[registries.origin.queue]\ndepth = 60000\nrequest_timeout = \"10m\"\ntunnel_timeout = \"10m\"\n\
             [registries.origin.mirror]\nlisten = \"{mirror}\"\nupstream = \"http://{origin}\"\n"
        );
        let binary = env!("CARGO_BIN_EXE_roadstead");
        let started = start(&[binary, "--config", "FOLDER/sidecar.toml"], &[("sidecar.toml", text)], proxy);
        let way = |form: &Form| match form {
            Form::Origin => ("roadstead, mirror", mirror),
            Form::Connect => ("roadstead, CONNECT", proxy),
            _ => ("roadstead, absolute-form", proxy),
        };
        forms.iter().map(|form| found(way(form).0, *form, way(form).1, started.clone())).collect()
    }

    /// Mode tcp, with or without splice, or mode http.
    pub fn haproxy(self, mode: Form, splice: bool) -> Found {
        let (Setting { origin, cap }, address) = (self, free());
        let (name, mode_lines) = match (mode, splice) {
            (Form::Origin, _) => ("HAProxy, http", "  mode http\n  option httplog\n  http-reuse always\n"),
            (_, true) => (
                "HAProxy, tcp, splice",
                "  mode tcp\n  option tcplog\n  option splice-request\n  option splice-response\n",
            ),
            (_, false) => ("HAProxy, tcp", "  mode tcp\n  option tcplog\n"),
        };
        let text = format!(
            "global\n  maxconn 6000\n  nbthread 1\n  log stdout format raw local0\ndefaults\n  log global\n{mode_lines}  \
             option abortonclose\n  timeout connect 5s\n  timeout client 10m\n  timeout server 10m\n  timeout queue 10m\n\
             frontend in\n  bind {address}\n  default_backend out\nbackend out\n  server origin {origin} maxconn {cap}\n"
        );
        let started = start(&["haproxy", "-db", "-f", "FOLDER/haproxy.cfg"], &[("haproxy.cfg", text)], address);
        found(name, mode, address, started)
    }

    pub fn nginx(self) -> Found {
        let (origin, address) = (self.origin, free());
        let text = format!(
            "daemon off;\nuser root;\nworker_processes 1;\npid FOLDER/pid;\nerror_log /dev/null;\nevents {{ worker_connections 20000; }}\n\
             http {{\n  access_log FOLDER/access.log;\n  keepalive_requests 10000000;\n  client_body_temp_path FOLDER/body;\n  \
             proxy_temp_path FOLDER/proxy;\n  fastcgi_temp_path FOLDER/f;\n  uwsgi_temp_path FOLDER/u;\n  scgi_temp_path FOLDER/s;\n  \
             upstream out {{ server {origin}; keepalive 64; keepalive_requests 10000000; }}\n  server {{ listen {address}; location / {{\n    \
             proxy_pass http://out;\n    proxy_http_version 1.1;\n    proxy_set_header Connection \"\";\n  }} }}\n}}\n"
        );
        found(
            "nginx",
            Form::Origin,
            address,
            start(&["nginx", "-c", "FOLDER/nginx.conf"], &[("nginx.conf", text)], address),
        )
    }

    /// It knows one origin, whatever the client asks for.
    pub fn envoy(self, form: Form) -> Found {
        let (Setting { origin, cap }, address) = (self, free());
        let socket =
            |at: SocketAddr| format!("{{ socket_address: {{ address: {}, port_value: {} }} }}", at.ip(), at.port());
        let (connect, upgrade) = match form {
            Form::Connect => (
                "{ match: { connect_matcher: {} }, route: { cluster: out, timeout: 0s, upgrade_configs: [{ upgrade_type: CONNECT, \
                 connect_config: {} }] } }, ",
                "          upgrade_configs: [{ upgrade_type: CONNECT }]\n",
            ),
            _ => ("", ""),
        };
        let extension = "type.googleapis.com/envoy.extensions";
        let text = format!(
            "static_resources:\n  listeners:\n  - address: {}\n    filter_chains:\n    - filters:\n      \
             - name: envoy.filters.network.http_connection_manager\n        typed_config:\n          \
             \"@type\": {extension}.filters.network.http_connection_manager.v3.HttpConnectionManager\n          \
             stat_prefix: in\n          generate_request_id: false\n          stream_idle_timeout: 0s\n{upgrade}          \
             access_log: [{{ name: file, typed_config: {{ \"@type\": {extension}.access_loggers.file.v3.FileAccessLog, \
             path: FOLDER/access.log }} }}]\n          \
             http_filters: [{{ name: router, typed_config: {{ \"@type\": {extension}.filters.http.router.v3.Router }} }}]\n          \
             route_config: {{ virtual_hosts: [{{ name: all, domains: [\"*\"], routes: [{connect}{{ match: {{ prefix: / }}, \
             route: {{ cluster: out, timeout: 0s }} }}] }}] }}\n  clusters:\n  - name: out\n    connect_timeout: 5s\n    \
             circuit_breakers: {{ thresholds: [{{ max_connections: {cap}, max_pending_requests: 100000, max_requests: 100000 }}] }}\n    \
             load_assignment: {{ cluster_name: out, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {} }} }}] }}] }}\n",
            socket(address),
            socket(origin)
        );
        let name = if form == Form::Connect { "Envoy, CONNECT" } else { "Envoy" };
        let command = ["envoy", "-c", "FOLDER/envoy.yaml", "--concurrency", "1", "--disable-hot-restart", "-l", "off"];
        found(name, form, address, start(&command, &[("envoy.yaml", text)], address))
    }

    /// It serves any origin.
    pub fn squid(form: Form) -> Found {
        let address = free();
        let text = format!(
            "http_port {address}\nacl all_of_them src all\nhttp_access allow all_of_them\ncache deny all\naccess_log stdio:/dev/null\n\
             cache_log /dev/null\npid_filename none\nshutdown_lifetime 0 seconds\nmax_filedescriptors 60000\nnetdb_filename none\n\
             pinger_enable off\ncoredump_dir /tmp\n"
        );
        let name = if form == Form::Connect { "Squid, CONNECT" } else { "Squid" };
        found(name, form, address, start(&["squid", "-N", "-f", "FOLDER/squid.conf"], &[("squid.conf", text)], address))
    }

    /// It serves any origin.
    pub fn tinyproxy() -> Found {
        let address = free();
        let text = format!(
            "Port {}\nListen 127.0.0.1\nTimeout 600\nMaxClients 20000\nLogLevel Connect\nLogFile \"/dev/null\"\nAllow 127.0.0.1\n",
            address.port()
        );
        let started = start(&["tinyproxy", "-d", "-c", "FOLDER/tinyproxy.conf"], &[("tinyproxy.conf", text)], address);
        found("tinyproxy, CONNECT", Form::Connect, address, started)
    }

    pub fn traffic_server(self, form: Form) -> Found {
        let address = free();
        let places: Vec<String> =
            ["prefix", "sysconfdir", "datadir", "localstatedir", "runtimedir", "logdir", "cachedir"]
                .map(|place| format!("{place}: FOLDER\n"))
                .to_vec();
        let layout = format!(
            "{}exec_prefix: /usr\nbindir: /usr/bin\nsbindir: /usr/sbin\nincludedir: /usr/include\nlibdir: /usr/lib/trafficserver\n\
             libexecdir: /usr/lib/trafficserver/modules\n",
            places.concat()
        );
        let most = if self.cap < 1000 { self.cap } else { 0 };
        let records = [
            format!("http.server_ports STRING {}:ip-in=127.0.0.1", address.port()),
            "exec_thread.autoconfig INT 0".to_owned(),
            "exec_thread.limit INT 1".to_owned(),
            "url_remap.remap_required INT 0".to_owned(),
            "reverse_proxy.enabled INT 0".to_owned(),
            "http.cache.http INT 0".to_owned(),
            "http.connect_ports STRING *".to_owned(),
            "admin.user_id STRING #-1".to_owned(),
            format!("http.per_server.connection.max INT {most}"),
            "http.connect_attempts_max_retries INT 1000".to_owned(),
            "net.connections_throttle INT 60000".to_owned(),
        ];
        let records = records.map(|record| format!("CONFIG proxy.config.{record}\n")).concat();
        let allow = "ip_allow:\n  - apply: in\n    ip_addrs: 127.0.0.1\n    action: allow\n    methods: ALL\n";
        let files = [
            ("runroot.yaml", layout),
            ("records.config", records),
            ("storage.config", "FOLDER 16M\n".to_owned()),
            ("ip_allow.yaml", allow.to_owned()),
        ];
        let name = if form == Form::Connect { "Traffic Server, CONNECT" } else { "Traffic Server" };
        found(name, form, address, start(&["traffic_server", "--run-root=FOLDER/runroot.yaml"], &files, address))
    }

    /// A loop of splice(2) and nothing else, in a process of its own.
    pub fn splice_loop(self) -> Found {
        let (address, own) = (free(), std::env::current_exe().unwrap_or_default());
        let command = [&*own.to_string_lossy(), "--splice-loop", &address.to_string(), &self.origin.to_string()];
        found("bare splice loop", Form::Tcp, address, start(&command, &[], address))
    }
}

fn found(name: &str, form: Form, address: SocketAddr, started: Result<Arc<Process>, String>) -> Found {
    let name = name.to_owned();
    match started {
        Ok(process) => Ok(Way { name, form, address, process: Some(process) }),
        Err(cause) => Err((name, cause)),
    }
}

/// An address that was free a moment ago.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
}

/// Starts a command in a folder of its own, which it and its files name as FOLDER, and waits until it listens.
fn start(command: &[&str], files: &[(&str, String)], address: SocketAddr) -> Result<Arc<Process>, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let place = |text: &str| text.replace("FOLDER", &folder.path().to_string_lossy());
    for (name, text) in files {
        fs::write(folder.path().join(name), place(text)).map_err(|error| error.to_string())?;
    }
    open_to_all(folder.path());
    let words: Vec<String> = command.iter().map(|word| place(word)).collect();
    let said = fs::File::create(folder.path().join("said")).map_err(|error| error.to_string())?;
    let quiet = || Stdio::from(said.try_clone().expect("a descriptor"));
    let is_ours = words[0].starts_with('/');
    let child = Command::new(&words[0])
        .args(&words[1..])
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(if is_ours { Stdio::null() } else { quiet() })
        .stderr(if is_ours { Stdio::null() } else { quiet() })
        .spawn();
    let mut child = child.map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!("{} is not installed", words[0]),
        _ => format!("{}: {error}", words[0]),
    })?;
    let began = Instant::now();
    while TcpStream::connect(address).is_err() {
        let ended = child.try_wait().ok().flatten();
        if ended.is_some() || began.elapsed() > START {
            let _ = child.kill();
            let said = fs::read_to_string(folder.path().join("said")).unwrap_or_default();
            return Err(format!("it does not listen; it said: {}", said.lines().last().unwrap_or_default()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(Arc::new(Process { child, _folder: folder }))
}

/// Some give up root's rights.
fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o777));
}
