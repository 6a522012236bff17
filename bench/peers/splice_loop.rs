//! The floor of what can carry bytes: splice(2) from one socket into a pipe and out of it again, a thread for each direction.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

const PIPE: usize = 1 << 20;

/// Carries all connections to `address` on to `origin`, for ever.
pub fn run(address: SocketAddr, origin: SocketAddr) {
    let listener = TcpListener::bind(address).expect("the address is free");
    for client in listener.incoming().flatten() {
        let Ok(server) = TcpStream::connect(origin) else { continue };
        for (from, to) in [(&client, &server), (&server, &client)] {
            let ends = from.try_clone().and_then(|from| Ok((from, to.try_clone()?)));
            let Ok((from, to)) = ends else { continue };
            std::thread::spawn(move || {
                let _ = carry(&from, &to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    }
}

fn carry(from: &TcpStream, to: &TcpStream) -> rustix::io::Result<()> {
    let (out, into) = pipe_with(PipeFlags::CLOEXEC)?;
    let _ = fcntl_setpipe_size(&into, PIPE);
    loop {
        let mut held = splice(from, None, &into, None, PIPE, SpliceFlags::MOVE)?;
        if held == 0 {
            return Ok(());
        }
        while held > 0 {
            held -= splice(&out, None, to, None, held, SpliceFlags::MOVE)?;
        }
    }
}
