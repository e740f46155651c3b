//! The same echo as a program of glommio, the runtime that is nearest to a ring per core. Nothing else here uses it.

use std::rc::Rc;

use futures_lite::{AsyncReadExt as _, AsyncWriteExt as _};
use glommio::net::{TcpListener, TcpStream};
use glommio::{GlommioError, LocalExecutorBuilder, Placement};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::bare_server::announce;

/// Serves until the process is ended.
pub fn serve(response: Vec<u8>) -> anyhow::Result<()> {
    // It locks its buffers in memory, of which the usual limit allows little.
    let most = getrlimit(Resource::Memlock).maximum;
    setrlimit(Resource::Memlock, Rlimit { current: most, maximum: most })?;
    let executor = LocalExecutorBuilder::new(Placement::Unbound).make().map_err(plain)?;
    executor.run(async move {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(plain)?;
        announce(listener.local_addr().map_err(plain)?)?;
        let response = Rc::new(response);
        loop {
            let socket = listener.accept().await.map_err(plain)?;
            socket.set_nodelay(true).map_err(plain)?;
            glommio::spawn_local(echo(socket, Rc::clone(&response))).detach();
        }
    })
}

async fn echo(mut socket: TcpStream, response: Rc<Vec<u8>>) {
    let mut request = [0; 4096];
    // A client that goes away is how every round ends.
    while let Ok(1..) = socket.read(&mut request).await {
        if socket.write_all(&response).await.is_err() {
            return;
        }
    }
}

/// Its errors may hold what is not `Send`.
#[expect(clippy::needless_pass_by_value, reason = "it stands in `map_err`")]
fn plain(error: GlommioError<()>) -> anyhow::Error {
    anyhow::anyhow!("glommio: {error}")
}
