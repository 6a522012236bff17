//! The control socket: where it lies, its user by `SO_PEERCRED`, and its name in the file system.
//!
//! Every local user may connect: the kernel says which one it is, and the answer says why that one may not order.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use super::{Sender, token};
use crate::config::ListenConfig;

/// The name of the socket in the folder that a service manager made for this process.
const NAME: &str = "control.sock";
/// That folder, by systemd.
const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";
/// Where the unit that is shipped has it.
const USUAL: &str = "/run/roadstead/control.sock";

/// Where the socket lies if the config does not say.
pub fn default_path() -> Option<PathBuf> {
    let folders = std::env::var_os(RUNTIME_DIRECTORY)?;
    // Several are joined by colons.
    let first = folders.to_str()?.split(':').next().filter(|first| !first.is_empty())?;
    Some(Path::new(first).join(NAME))
}

/// Where another process looks for it.
pub fn usual_path() -> PathBuf {
    default_path().unwrap_or_else(|| PathBuf::from(USUAL))
}

/// A listening socket that is not at its path yet.
#[derive(Debug)]
pub struct ControlSocket {
    listener: StdListener,
    /// Removes it from where it lies.
    place: SocketPlace,
    path: PathBuf,
}

/// A socket in the file system. The drop removes it, unless another one lies there by now.
#[derive(Debug)]
pub struct SocketPlace {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl Drop for SocketPlace {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.device_and_inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl ControlSocket {
    /// Listens beside `path`. With `takes_over`, the socket of the process before may still lie there.
    /// Fails when there is something else, or another process listens there.
    pub fn open(path: &Path, takes_over: bool) -> io::Result<ControlSocket> {
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
            }
            Ok(_) if !takes_over && StdStream::connect(path).is_ok() => {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
            }
            _ => {}
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        if fs::symlink_metadata(&beside).is_ok_and(|found| found.file_type().is_socket()) {
            fs::remove_file(&beside)?;
        }
        let listener = StdListener::bind(&beside)?;
        let place = SocketPlace { device_and_inode: identity(&beside)?, path: beside };
        fs::set_permissions(&place.path, fs::Permissions::from_mode(0o666))?;
        listener.set_nonblocking(true)?;
        Ok(ControlSocket { listener, place, path: path.to_owned() })
    }

    /// Where it will lie.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts it at its path, in place of one that was there. Must be called inside a tokio runtime.
    pub fn publish(self) -> io::Result<(UnixListener, SocketPlace)> {
        let ControlSocket { listener, mut place, path } = self;
        fs::rename(&place.path, &path)?;
        place.path = path;
        Ok((UnixListener::from_std(listener)?, place))
    }
}

/// The socket for orders, where the config or the service manager gives it a place. Where it lies by default it may fail.
/// Fails, in words, when the config names a place that cannot be had, or a token that is none.
pub fn of_config(listen: &ListenConfig, takes_over: bool) -> Result<Option<ControlSocket>, String> {
    listen.control_token_file.as_deref().map(token).transpose()?;
    if let Some(path) = &listen.control {
        let told = |error| format!("listen.control: cannot listen on {}: {error}", path.display());
        return ControlSocket::open(path, takes_over).map(Some).map_err(told);
    }
    let Some(path) = default_path() else {
        tracing::info!("no control socket: neither listen.control nor RUNTIME_DIRECTORY is set");
        return Ok(None);
    };
    let opened = ControlSocket::open(&path, takes_over);
    Ok(opened.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "no control socket")).ok())
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// The user at the other end, as the kernel knows it.
pub fn sender(stream: &UnixStream) -> io::Result<Sender> {
    let uid = stream.peer_cred()?.uid();
    let own = rustix::process::geteuid().as_raw();
    Ok(if uid == 0 || uid == own { Sender::Permitted(uid) } else { Sender::Stranger(uid) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_takes_the_place_of_one_that_is_over_and_of_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let (first, place) = ControlSocket::open(&path, false).unwrap().publish().unwrap();
        assert_eq!(ControlSocket::open(&path, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // Until it is published, the one before answers there.
        let second = ControlSocket::open(&path, true).unwrap();
        let client = UnixStream::connect(&path).await.unwrap();
        first.accept().await.unwrap();
        drop(client);
        let (second, second_place) = second.publish().unwrap();
        // The end of the one before leaves the path to the next.
        drop((first, place));
        let _client = UnixStream::connect(&path).await.unwrap();
        let (stream, _) = second.accept().await.unwrap();
        assert!(matches!(sender(&stream).unwrap(), Sender::Permitted(_)));
        drop((second, second_place));
        assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "nothing is left");
        // One that was killed leaves its socket.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        drop(ControlSocket::open(&path, false).unwrap().publish().unwrap());
        fs::write(&path, "a file").unwrap();
        assert_eq!(ControlSocket::open(&path, true).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
    }

    #[test]
    fn a_failed_start_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        drop(ControlSocket::open(&folder.path().join(NAME), false).unwrap());
        assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
    }
}
